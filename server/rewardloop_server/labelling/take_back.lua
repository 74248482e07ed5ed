-- Begins to take back a labeller's last answer or skip. It is being undone until its signals are taken back; `forget`
-- ends that.
--
-- ARGV[1]  the labeller's hash
-- ARGV[2]  id of the lease with which the task is given again
--
-- Returns {'undoing', the lease, the new lease}, {'taken'} if it is a skip and others have the task now, or {'none'}.

local who, LOOKED_BACK = ARGV[1], 99
end_leases()
for _, lease in ipairs(redis.call('LRANGE', base .. 'given:' .. who, 0, LOOKED_BACK)) do
    local its = lease_key(lease)
    local about = redis.call('HMGET', its, 'state', 'task', 'kind', 'repeat', 'again')
    if about[1] == 'undoing' and about[5] ~= '' then return {'undoing', lease, about[5]} end
    if about[1] == 'answered' then
        local state = redis.call('HMGET', task_key(about[2]), 'closed', 'taken', 'wanted')
        if state[1] ~= 'retracted' then
            if about[3] == 'skip' and about[4] == '' then
                if tonumber(state[2] or 0) >= tonumber(state[3]) then return {'taken'} end
                take(about[2], 1)
            end
            redis.call('HSET', its, 'state', 'undoing', 'again', ARGV[2])
            redis.call('ZADD', base .. 'pending', whole(now), lease)
            return {'undoing', lease, ARGV[2]}
        end
    end
end
return {'none'}
