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
--   ARGV   its event_id
--   ARGV   12 bytes of a digest of caller and event_id, and 8 bytes of a digest of what the caller sent
--   ARGV   the traceparent in which it was sent; '' if there was none
--   ARGV   how many checks it has
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
    window, since, began = 0, now, now
    redis.call('HSET', ids, 'window', 0, 'since', now, 'began0', now, 'count0', 0)
elseif began > now then -- the clock was set back
    redis.call('HSET', ids, 'began0', now)
elseif now - began >= remembered_s / 2 or tonumber(known[4]) >= most_ids then
    window = window + 1
    redis.call('HSET', ids, 'window', window, 'began0', now, 'count0', 0, 'began1', began, 'count1', known[4],
        'began2', known[5] or began, 'count2', known[6] or 0)
end
local is_legacy_known = now - since < remembered_s
local kept_ms = math.ceil(1500 * remembered_s)
local oldest = math.max(0, window - 2)
local remembered = 0

local function first_answer(bucket, field, said, event_id)
    for w = window, oldest, -1 do
        local found = redis.call('HGET', ids .. ':' .. w .. bucket, field)
        if found then return found == said and '=' or '#' end
    end
    if is_legacy_known and redis.call('EXISTS', seen_prefix .. event_id) == 1 then return '=' end
end

local function remember(bucket, field, said)
    local key = ids .. ':' .. window .. bucket
    redis.call('HSET', key, field, said)
    if redis.call('HLEN', key) == 1 then
        redis.call('PEXPIRE', key, kept_ms)
        if window > 2 then redis.call('UNLINK', ids .. ':' .. (window - 3) .. bucket) end
    end
    remembered = remembered + 1
end

local answers = {}
local k, a = 3, 7
while a < #ARGV do
    local event, event_id, digests, trace, checks = ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], tonumber(ARGV[a + 4])
    local bucket = string.format(':%02x%02x', string.byte(digests, 1, 2))
    local field, said = string.sub(digests, 3, 12), string.sub(digests, 13)
    local answer = first_answer(bucket, field, said, event_id)
    for c = 1, checks do
        if answer then break end
        local key, at = KEYS[k + c - 1], a + 1 + 4 * c
        local name, limit, member = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 3]
        if member == '' then
            if tonumber(redis.call('GET', key) or 0) >= limit then answer = '!' .. name end
        elseif redis.call('SISMEMBER', key, member) == 1 then
            answer = '!replay'
        elseif redis.call('SCARD', key) >= limit then
            answer = '!' .. name
        end
    end
    if not answer then
        local fields = {event_field, event, id_field, event_id}
        if trace ~= '' then fields[5], fields[6] = trace_field, trace end
        answer = redis.call('XADD', KEYS[1], '*', unpack(fields))
        remember(bucket, field, said)
        for c = 1, checks do
            local key, at = KEYS[k + c - 1], a + 1 + 4 * c
            local kept_s, member = ARGV[at + 2], ARGV[at + 3]
            if member == '' then redis.call('INCR', key) else redis.call('SADD', key, member) end
            redis.call('EXPIRE', key, kept_s)
        end
    end
    answers[#answers + 1] = answer
    k, a = k + checks, a + 5 + 4 * checks
end
if remembered > 0 then redis.call('HINCRBY', ids, 'count0', remembered) end
return table.concat(answers, ' ')
