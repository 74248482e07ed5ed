-- Moves a model's pointer: a promotion, or a rollback.
--
-- A promotion puts the version that was active before on top of the list of previous ones. A rollback takes its target
-- off that list, so that a second rollback goes further back and not forward again. Both end a canary and a shadow by
-- leaving them out of the new value. Promoting the active version changes nothing but that.
--
-- A rollback holds the promotions of leaders, because it is a person's decision. Anybody else's promotion ends the hold.
--
-- KEYS[1]  rewardloop:{models}:active: hash, model name to the JSON that rewardloop.formats.keys describes
-- KEYS[2]  rewardloop:{models}:promoted_by: hash, model name to the epoch of the latest leader that promoted it
-- ARGV[1]  the model's name
-- ARGV[2]  the version to make active
-- ARGV[3]  the reason, in the caller's words
-- ARGV[4]  the time of the change, ISO 8601 in UTC
-- ARGV[5]  most previous versions that are kept
-- ARGV[6]  the version that must be active now, for a rollback; '' for a promotion
-- ARGV[7]  the epoch of the trainer that asks as the leader; 0 if nobody asks as a leader
-- ARGV[8]  the version that must be active for a promotion, if any is; '' for any
-- Returns {the version that was active before, or nil; outcome}. The outcome is
--    1  the pointer is at the version now
--    0  a rollback was not made, because the pointer has moved meanwhile
--   -1  a promotion was not made, because a later leader has promoted a version of this model
--   -2  a promotion was not made, because another version is active than the one that must be
--   -3  a promotion was not made, because a rollback holds the promotions of leaders

local model, version, reason, changed_at = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local most_previous, must_be_active, epoch = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local raw = redis.call('HGET', KEYS[1], model)
local old = raw and cjson.decode(raw)
local before, previous = false, {}
if old then before, previous = old.version, old.previous end
if epoch > 0 and tonumber(redis.call('HGET', KEYS[2], model) or 0) > epoch then return {before, -1} end
if ARGV[8] ~= '' and before and before ~= ARGV[8] then return {before, -2} end
local is_held = old and old.held
if epoch > 0 then
    if is_held then return {before, -3} end
    redis.call('HSET', KEYS[2], model, ARGV[7])
end
if must_be_active == '' and before == version and not (old.canary or old.shadow or is_held) then return {before, 1} end
if must_be_active ~= '' then
    if before ~= must_be_active or previous[1] ~= version then return {before, 0} end
    table.remove(previous, 1)
elseif before and before ~= version then
    table.insert(previous, 1, before)
    while #previous > most_previous do table.remove(previous) end
end
-- cjson would write an empty list as an object.
local list = #previous > 0 and cjson.encode(previous) or '[]'
redis.call('HSET', KEYS[1], model,
    '{"version":' .. cjson.encode(version) .. ',"previous":' .. list ..
    ',"changed_at":' .. cjson.encode(changed_at) .. ',"reason":' .. cjson.encode(reason) ..
    (must_be_active ~= '' and ',"held":true}' or '}'))
return {before, 1}
