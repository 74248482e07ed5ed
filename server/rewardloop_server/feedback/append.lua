-- Appends signals to the stream, each id once, and none beyond the bounds of an annotator or a caller.
--
-- An id is remembered in one of three windows of time. New ids go to the newest, and an id is looked for in all three.
-- A window ends after half of the time for which ids are remembered, or when it is full. So an id is remembered for
-- that time at least, unless the windows before were full.
--
-- KEYS[1]  rewardloop:{feedback}:events: the stream that the signals are appended to
-- KEYS[2]  rewardloop:{feedback}:ids: hash, the windows of remembered ids; `rewardloop.formats.keys` has its fields
-- Derived, with the hash tag of KEYS[2]:
--          <KEYS[2]>:<window>:<bucket>: hash, a window's ids in one bucket
--          rewardloop:{feedback}:seen:<event_id>: string, an event_id that an earlier version remembered
-- For each event, in the order of the events, one key for each of its checks:
--   KEYS   rewardloop:{feedback}:count:<window>:<hash>: integer, the signals of one annotator or caller in a while
--   KEYS   rewardloop:{feedback}:judged:<hash>: set, hashes of what one annotator said about one generation
--
-- ARGV[1]  seconds for which an id is remembered
-- ARGV[2]  most ids of a window
-- ARGV[3]  the part of a `seen` key that comes before the event_id
-- ARGV[4]  name of the entry's field that holds the event
-- ARGV[5]  name of the entry's field that holds the event_id
-- ARGV[6]  name of the entry's field that holds the traceparent
-- For each event, in the order of the events:
--   ARGV   the serialized FeedbackEvent
--   ARGV   what the script reads of it, in one text, because each argument costs time of the server and of Redis:
--            4 bytes    its bucket in hex, made of 2 bytes of a digest of caller and event_id
--            10 bytes   the rest of that digest
--            8 bytes    a digest of what the caller sent
--            1 byte     how many checks it has
--            2 bytes    how many bytes its event_id has, big-endian
--            the event_id
--            the traceparent in which it was sent; nothing if there was none
--   For each check:
--     ARGV  its name
--     ARGV  its limit: the most signals, or the most members of its set
--     ARGV  seconds for which its key is kept after its last change
--     ARGV  the member to add to its set; '' if its key is a counter
--
-- Returns one text with an answer for each event, separated by blanks:
--   <stream id>    appended now
--   =              not appended: it was appended before
--   #              not appended: an event with this id and other content was appended before
--   !<name>        not appended: the check of that name does not hold
--   !replay        not appended: the set of one of its checks has the member already

local remembered_s, most_ids, seen_prefix = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local event_field, id_field, trace_field = ARGV[4], ARGV[5], ARGV[6]
local ids = KEYS[2]
local now = tonumber(redis.call('TIME')[1])

local known = redis.call('HMGET', ids, 'window', 'since', 'began0', 'count0', 'began1', 'count1')
local window, since, began = tonumber(known[1]), tonumber(known[2]), tonumber(known[3])
if not window then
    window, began = 0, now
    -- An earlier version that remembered an id had made the stream before.
    since = redis.call('EXISTS', KEYS[1]) == 1 and now or 0
    redis.call('HSET', ids, 'window', 0, 'since', since, 'began0', now, 'count0', 0)
elseif began > now then -- the clock was set back
    redis.call('HSET', ids, 'began0', now)
elseif now - began >= remembered_s / 2 or tonumber(known[4]) >= most_ids then
    window = window + 1
    redis.call('HSET', ids, 'window', window, 'began0', now, 'count0', 0, 'began1', began, 'count1', known[4],
        'began2', known[5] or began, 'count2', known[6] or 0)
end
local is_legacy_known = now - since < remembered_s
local kept_ms = math.ceil(1500 * remembered_s)
local newest = ids .. ':' .. window .. ':'
local older = {} -- what the names of the buckets in the windows before begin with
for w = window - 1, math.max(0, window - 2), -1 do older[#older + 1] = ids .. ':' .. w .. ':' end
local remembered = 0
local call, byte, sub = redis.call, string.byte, string.sub

local answers = {}
local k, a = 3, 7
while a < #ARGV do
    local event, about = ARGV[a], ARGV[a + 1]
    local bucket, field, said = sub(about, 1, 4), sub(about, 5, 14), sub(about, 15, 22)
    local checks, high, low = byte(about, 23, 25)
    local id_end = 25 + 256 * high + low
    local event_id = sub(about, 26, id_end)
    local known_in = newest .. bucket
    local is_first = call('HLEN', known_in) == 0
    local found = not is_first and call('HGET', known_in, field)
    for w = 1, #older do
        if found then break end
        found = call('HGET', older[w] .. bucket, field)
    end
    local answer
    if found then
        answer = found == said and '=' or '#'
    elseif is_legacy_known and call('EXISTS', seen_prefix .. event_id) == 1 then
        answer = '='
    end
    for c = 1, checks do
        if answer then break end
        local key, at = KEYS[k + c - 1], a + 4 * c - 2
        local name, limit, member = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 3]
        if member == '' then
            if tonumber(call('GET', key) or 0) >= limit then answer = '!' .. name end
        elseif call('SISMEMBER', key, member) == 1 then
            answer = '!replay'
        elseif call('SCARD', key) >= limit then
            answer = '!' .. name
        end
    end
    if not answer then
        if id_end == #about then
            answer = call('XADD', KEYS[1], '*', event_field, event, id_field, event_id)
        else
            local trace = sub(about, id_end + 1)
            answer = call('XADD', KEYS[1], '*', event_field, event, id_field, event_id, trace_field, trace)
        end
        call('HSET', known_in, field, said)
        if is_first then
            call('PEXPIRE', known_in, kept_ms)
            if window > 2 then call('UNLINK', ids .. ':' .. (window - 3) .. ':' .. bucket) end
        end
        remembered = remembered + 1
        for c = 1, checks do
            local key, at = KEYS[k + c - 1], a + 4 * c - 2
            local kept_s, member = ARGV[at + 2], ARGV[at + 3]
            if member == '' then call('INCR', key) else call('SADD', key, member) end
            call('EXPIRE', key, kept_s)
        end
    end
    answers[#answers + 1] = answer
    k, a = k + checks, a + 2 + 4 * checks
end
if remembered > 0 then call('HINCRBY', ids, 'count0', remembered) end
return table.concat(answers, ' ')
