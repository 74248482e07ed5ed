-- Gives the labeller a task again whose answer was refused.
--
-- ARGV[1]  the lease
-- ARGV[2]  milliseconds after which the lease ends

local lease, its = ARGV[1], lease_key(ARGV[1])
local about = redis.call('HMGET', its, 'state', 'who', 'drop', 'task')
if about[1] ~= 'pending' then return end
redis.call('HDEL', its, 'digest', 'given', 'kind', 'marks', 'ms', 'reason')
redis.call('ZREM', base .. 'pending', lease)
if about[3] then
    redis.call('HSET', its, 'state', 'retracted')
    redis.call('PEXPIRE', its, RETRACTED_LEASE_MS)
    redis.call('SREM', base .. 'of:' .. about[4], lease)
    tidy(about[4])
else
    add(its, 'attempt', 1) -- so that another answer has other event_ids
    hold(lease, about[2], tonumber(ARGV[2]))
end
