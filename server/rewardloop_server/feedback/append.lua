-- Appends signals to the stream, each event_id once, and none beyond an annotator's bounds.
--
-- KEYS[1]  rewardloop:{feedback}:events: the stream that the signals are appended to
-- For each event, in the order of the events:
--   KEYS   rewardloop:{feedback}:seen:<event_id>: string, the stream id under which that event_id was first appended
--   KEYS   one key for each of the event's checks:
--          rewardloop:{feedback}:count:<window>:<hash>: integer, the signals of one annotator in a minute or a day
--          rewardloop:{feedback}:judged:<hash>: set, hashes of what one annotator said about one generation
--
-- ARGV[1]  seconds for which an event_id is remembered
-- ARGV[2]  the part of a `seen` key that comes before the event_id
-- ARGV[3]  name of the entry's field that holds the event
-- ARGV[4]  name of the entry's field that holds the event_id
-- ARGV[5]  name of the entry's field that holds the traceparent
-- For each event, in the order of the events:
--   ARGV   the serialized FeedbackEvent
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
--   =<stream id>   not appended: an earlier event with this event_id has that stream id
--   !<name>        not appended: the check of that name does not hold
--   !replay        not appended: the set of one of its checks has the member already

local remembered_s, seen_prefix = ARGV[1], ARGV[2]
local event_field, id_field, trace_field = ARGV[3], ARGV[4], ARGV[5]
local answers = {}
local k, a = 2, 6
while a < #ARGV do
    local seen, event, trace, checks = KEYS[k], ARGV[a], ARGV[a + 1], tonumber(ARGV[a + 2])
    local first = redis.call('GET', seen)
    local answer = first and '=' .. first
    for c = 1, checks do
        if answer then break end
        local key, at = KEYS[k + c], a + 4 * c - 1
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
        local fields = {event_field, event, id_field, seen:sub(#seen_prefix + 1)}
        if trace ~= '' then fields[5], fields[6] = trace_field, trace end
        answer = redis.call('XADD', KEYS[1], '*', unpack(fields))
        redis.call('SET', seen, answer, 'EX', remembered_s)
        for c = 1, checks do
            local key, at = KEYS[k + c], a + 4 * c - 1
            local kept_s, member = ARGV[at + 2], ARGV[at + 3]
            if member == '' then redis.call('INCR', key) else redis.call('SADD', key, member) end
            redis.call('EXPIRE', key, kept_s)
        end
    end
    answers[#answers + 1] = answer
    k, a = k + 1 + checks, a + 3 + 4 * checks
end
return table.concat(answers, ' ')
