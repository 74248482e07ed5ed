-- Notes what is expected of the answer about a task.
--
-- ARGV[1]  the task
-- ARGV[2]  the information
-- ARGV[3]  digest of the reward version that said it; '' if none could
-- ARGV[4]  how many of the most informative tasks are to be scored again if another version said theirs
-- ARGV[5]  the aspect that the task asks about

local RESCORE_AFTER_MS = 600000
local state = task_key(ARGV[1])
redis.call('SREM', base .. 'unscored', ARGV[1])
if redis.call('HEXISTS', state, 'wanted') == 0 then return end
redis.call('HSET', state, 'information', ARGV[2])
if ARGV[3] ~= '' then redis.call('HSET', state, 'scored', '1') end
if redis.call('ZSCORE', base .. 'open', ARGV[1]) then redis.call('ZADD', base .. 'open', ARGV[2], ARGV[1]) end
local meta, by, at = base .. 'meta', 'scored_by ' .. ARGV[5], 'rescored_at ' .. ARGV[5]
local before = redis.call('HMGET', meta, by, at)
if ARGV[3] == '' or before[1] == ARGV[3] then return end
-- While a canary answers a share of the requests, versions take turns.
if before[1] and now - tonumber(before[2]) < RESCORE_AFTER_MS then return end
redis.call('HSET', meta, by, ARGV[3], at, whole(now))
if not before[1] then return end
for _, task in ipairs(redis.call('ZREVRANGE', base .. 'open', 0, tonumber(ARGV[4]) - 1)) do
    if task ~= ARGV[1] then redis.call('SADD', base .. 'unscored', task) end
end
