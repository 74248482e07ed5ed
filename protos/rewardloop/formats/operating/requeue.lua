-- Appends the event of a dead letter to the feedback stream again, and deletes the letter.
--
-- KEYS[1]  rewardloop:{feedback}:events: the stream
-- KEYS[2]  rewardloop:{feedback}:dead: the stream of dead letters
-- ARGV[1]  id of the letter
-- ARGV[2]  name of the letter's field for the event
-- ARGV[3]  name of the entry's field that holds the event
-- ARGV[4]  name of the entry's field that holds the event_id
-- ARGV[5]  the event_id
-- Returns the id of the new entry; nil if there is no such letter, or it has no event

local found = redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1])
if not found[1] then return false end
local fields, event = found[1][2], ''
for i = 1, #fields, 2 do
    if fields[i] == ARGV[2] then event = fields[i + 1] end
end
if event == '' then return false end
local id = redis.call('XADD', KEYS[1], '*', ARGV[3], event, ARGV[4], ARGV[5])
redis.call('XDEL', KEYS[2], ARGV[1])
return id
