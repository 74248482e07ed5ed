-- Takes the trainer's lock, if nobody holds it, and counts the leaders.
--
-- KEYS[1]  the lock: a string that holds its holder's token
-- KEYS[2]  the epoch: a number that each leader raises
-- ARGV[1]  the caller's token
-- ARGV[2]  milliseconds until the lock expires
-- ARGV[3]  the least epoch of this leader
--
-- Returns the epoch of this leader, and false if another one holds the lock.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return false
end
-- A Redis at its memory limit refuses the first write of a script if it needs memory, and none after a write that does
-- not. The trainer is who frees that memory, so it must be able to lead.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local epoch = redis.call('INCR', KEYS[2])
if epoch < tonumber(ARGV[3]) then
  epoch = tonumber(ARGV[3])
  redis.call('SET', KEYS[2], ARGV[3])
end
return epoch
