-- Replaces a model's pointer, if it is still the one that its successor was made from.
--
-- KEYS[1]  rewardloop:{models}:active: hash, model name to the JSON of rewardloop.formats.storing.active
-- ARGV[1]  the model's name
-- ARGV[2]  the value that must be there; '' if there must be none
-- ARGV[3]  the value to put there
-- Returns 1 if it was put there, else 0

if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
