-- Lets the trainer's lock live on, if the caller still holds it, and puts back an epoch that a failover lost.
--
-- KEYS[1]  the lock: a string that holds its holder's token
-- KEYS[2]  the epoch: a number that each leader raises
-- ARGV[1]  the caller's token
-- ARGV[2]  milliseconds until the lock expires, from now on
-- ARGV[3]  the caller's epoch
--
-- Returns 1 if the lock was renewed, and 0 if the caller does not hold it.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if tonumber(redis.call('GET', KEYS[2]) or 0) < tonumber(ARGV[3]) then
  redis.call('SET', KEYS[2], ARGV[3])
end
return 1
