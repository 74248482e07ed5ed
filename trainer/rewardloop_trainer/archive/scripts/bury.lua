-- Makes a dead letter of one pending entry, without sending its bytes to anybody.
--
-- KEYS[1]  rewardloop:{feedback}:events: the stream
-- KEYS[2]  rewardloop:{feedback}:dead: the stream of dead letters
-- ARGV[1]  the consumer group
-- ARGV[2]  id of the entry
-- ARGV[3]  the reason
-- ARGV[4]  name of the entry's field that holds the event
-- ARGV[5]  name of the letter's field for the event
-- ARGV[6]  name of the letter's field for the reason
-- ARGV[7]  name of the letter's field for the id

local event = ''
local found = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])
if found[1] then
    local fields = found[1][2]
    for i = 1, #fields, 2 do
        if fields[i] == ARGV[4] then event = fields[i + 1] end
    end
end
-- Acknowledged first: after a write, a Redis at its memory limit takes the letter too.
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XADD', KEYS[2], '*', ARGV[5], event, ARGV[6], ARGV[3], ARGV[7], ARGV[2])
