-- Returns the keys that sign generation ids; the first caller puts the first key there.
--
-- KEYS[1]  rewardloop:{secrets}:generation: list of keys in hex, newest first
-- ARGV[1]  a new random key in hex, which becomes the first key if there is none
-- ARGV[2]  how many keys are wanted
-- Returns the newest keys, at most as many as are wanted

local new_key, wanted = ARGV[1], tonumber(ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('LPUSH', KEYS[1], new_key) end
return redis.call('LRANGE', KEYS[1], 0, wanted - 1)
