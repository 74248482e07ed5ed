-- Makes the consumer group of the feedback stream, if there is none. It begins with the first entry.
--
-- KEYS[1]  rewardloop:{feedback}:events: the stream
-- ARGV[1]  the consumer group

-- A write that needs no memory comes first: after it, a Redis at its memory limit takes the group too.
redis.call('XACK', KEYS[1], ARGV[1], '0-1')
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
    return made
end
return redis.status_reply('OK')
