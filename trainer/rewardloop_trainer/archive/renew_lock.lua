-- Lets the trainer's lock live on, if the caller still holds it.
--
-- KEYS[1]  the lock: a string that holds its holder's token
-- ARGV[1]  the caller's token
-- ARGV[2]  milliseconds until the lock expires, from now on
--
-- Returns 1 if the lock was renewed, and 0 if the caller does not hold it.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 0
