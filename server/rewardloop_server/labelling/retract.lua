-- Takes back some tasks of an import.
--
-- ARGV[1]  the import's id
-- ARGV[2]  1 if answers about them are taken back too, else 0
-- ARGV[3]  most tasks of this call
--
-- Returns {1 if there are more, how many tasks were taken back, leases of answers to take back...}.

local import, most = base .. 'import:' .. ARGV[1], tonumber(ARGV[3])
local found, gone = {0, 0}, 0
for _, task in ipairs(redis.call('SRANDMEMBER', import, most)) do
    local state = task_key(task)
    redis.call('SREM', import, task)
    add(state, 'imports', -1)
    if not redis.call('HGET', state, 'imports') and withdraw(task) then
        gone = gone + 1
        local leases = ARGV[2] == '1' and redis.call('SMEMBERS', base .. 'of:' .. task) or {}
        for _, lease in ipairs(leases) do
            local its = lease_key(lease)
            local what = redis.call('HGET', its, 'state')
            if what == 'answered' then
                redis.call('HSET', its, 'state', 'undoing', 'again', '')
                redis.call('ZADD', base .. 'pending', whole(now), lease)
            elseif what == 'pending' then
                redis.call('HSET', its, 'drop', '1')
            else
                redis.call('HSET', its, 'again', '')
            end
            found[#found + 1] = lease
        end
        tidy(task)
    end
end
found[1], found[2] = redis.call('SCARD', import) > 0 and 1 or 0, gone
return found
