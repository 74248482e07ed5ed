-- Reads entries of the feedback stream for its consumer group, so many bytes at a time, and none that is too large.
--
-- KEYS[1]   rewardloop:{feedback}:events: the stream
-- ARGV[1]   the consumer group
-- ARGV[2]   the consumer
-- ARGV[3]   most entries
-- ARGV[4]   bytes after which no further entry is read
-- ARGV[5]   most bytes of an entry that is returned
-- ARGV[6..] ids of pending entries, which are claimed; without any, new entries are read
--
-- Returns a list of four:
--   the entries that are not too large
--   how many of the pending ids were looked at
--   ids and bytes, in turns, of the entries that are too large: they are pending now
--   ids that were pending though their entries are no longer in the stream: they are acknowledged now

local group, consumer = ARGV[1], ARGV[2]
local most_entries, most_bytes, most_of_entry = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local entries, large, gone = {}, {}, {}
local looked_at, bytes = 0, 0

local function take(entry)
    local size = 0
    for i = 1, #entry[2] do size = size + #entry[2][i] end
    bytes = bytes + size
    if size > most_of_entry then
        large[#large + 1], large[#large + 2] = entry[1], size
    else
        entries[#entries + 1] = entry
    end
end

local function has_room() return looked_at < most_entries and bytes < most_bytes end

if #ARGV < 6 then
    while has_room() do
        local read = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS', KEYS[1], '>')
        if not read then break end
        take(read[1][2][1])
        looked_at = looked_at + 1
    end
else
    while 6 + looked_at <= #ARGV and has_room() do
        local id = ARGV[6 + looked_at]
        local claimed = redis.call('XCLAIM', KEYS[1], group, consumer, 0, id)
        if claimed[1] then
            take(claimed[1])
        else
            redis.call('XACK', KEYS[1], group, id)
            gone[#gone + 1] = id
        end
        looked_at = looked_at + 1
    end
end
return {entries, looked_at, large, gone}
