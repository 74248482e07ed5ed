-- Erases the texts of tasks, and what was said about them. Nobody gets them any more. `places.lua` stands before this.
--
-- KEYS[1]  the prefix of the project's keys
-- ARGV     ids of tasks
--
-- Returns how many had texts.

local gone = 0
for _, task in ipairs(ARGV) do
    withdraw(task)
    for _, lease in ipairs(redis.call('SMEMBERS', base .. 'of:' .. task)) do
        redis.call('HDEL', lease_key(lease), 'given', 'reason')
        -- An answer that is not recorded yet is dropped, because nothing says any more what it was about.
        if redis.call('HGET', lease_key(lease), 'state') == 'pending' then
            redis.call('HSET', lease_key(lease), 'drop', '1')
        end
    end
    gone = gone + redis.call('HDEL', base .. 'tasks', task)
    redis.call('HDEL', base .. 'generations', task)
    tidy(task)
end
return gone
