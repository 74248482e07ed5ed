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
    local about = redis.call('HMGET', state, 'imports', 'closed', 'answers', 'wanted')
    if not about[1] and about[4] and about[2] ~= 'retracted' then
        gone = gone + 1
        add(base .. 'meta', 'tasks', -1)
        if about[2] == 'skips' then add(base .. 'meta', 'given_up', -1) end
        if tonumber(about[3] or 0) >= tonumber(about[4]) then add(base .. 'meta', 'done', -1) end
        redis.call('HSET', state, 'closed', 'retracted')
        redis.call('SREM', base .. 'unscored', task)
        show(task)
        for _, lease in ipairs(redis.call('SMEMBERS', base .. 'of:' .. task)) do
            local its = lease_key(lease)
            local what = redis.call('HMGET', its, 'state', 'who', 'repeat')
            if what[1] == 'held' or what[1] == 'ended' then
                if what[1] == 'held' and what[3] == '' then add(state, 'taken', -1) end
                redis.call('HSET', its, 'state', 'retracted')
                redis.call('PEXPIRE', its, RETRACTED_LEASE_MS)
                redis.call('ZREM', base .. 'leases', lease)
                redis.call('LREM', base .. 'held:' .. what[2], 0, lease)
                redis.call('SREM', base .. 'of:' .. task, lease)
            elseif ARGV[2] == '1' then
                if what[1] == 'answered' then
                    redis.call('HSET', its, 'state', 'undoing', 'again', '')
                    redis.call('ZADD', base .. 'pending', whole(now), lease)
                elseif what[1] == 'pending' then
                    redis.call('HSET', its, 'drop', '1')
                else
                    redis.call('HSET', its, 'again', '')
                end
                found[#found + 1] = lease
            end
        end
        tidy(task)
    end
end
found[1], found[2] = redis.call('SCARD', import) > 0 and 1 or 0, gone
return found
