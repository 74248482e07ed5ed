-- Adds tasks of an import, each once.
--
-- ARGV[1]  the import's id
-- ARGV[2]  the information that is expected of a task which the model has not scored
-- For each task:
--   ARGV   its id
--   ARGV   the serialized NewTask
--   ARGV   the serialized Generation of its candidates; '' if there is none
--   ARGV   how many labellers are to answer it
--   ARGV   how many candidates it has
--
-- Returns for each task 1 if the project had it before, else 0.

local known = {}
for a = 3, #ARGV, 5 do
    local task, data, generation, wanted, size = ARGV[a], ARGV[a + 1], ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
    local state = task_key(task)
    local before = redis.call('HMGET', state, 'wanted', 'closed', 'answers')
    local is_new = not before[1]
    if redis.call('HEXISTS', base .. 'tasks', task) == 0 then -- it is new, or was erased
        redis.call('HSET', base .. 'tasks', task, data)
        if generation ~= '' then redis.call('HSET', base .. 'generations', task, generation) end
    end
    if is_new then
        redis.call('HSET', state, 'wanted', wanted, 'size', size, 'information', ARGV[2])
        redis.call('SADD', base .. 'unscored', task)
    end
    if is_new or before[2] == 'retracted' then -- it may be added again after it was taken back
        redis.call('HDEL', state, 'closed')
        add(base .. 'meta', 'tasks', 1)
        if not is_new and tonumber(before[3] or 0) >= tonumber(before[1]) then add(base .. 'meta', 'done', 1) end
        show(task)
    end
    if redis.call('SADD', base .. 'import:' .. ARGV[1], task) == 1 then add(state, 'imports', 1) end
    known[#known + 1] = (is_new or before[2] == 'retracted') and 0 or 1
end
return known
