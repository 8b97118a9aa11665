-- Store videos; writes only what differs.
--
-- KEYS: counters (hash), then one key per video. ARGV: one packed value per video.
-- Counters: "changed" rises when a known video changes, "written" on any write.
-- Returns one 0 (equal already) or 1 (written) per video.
local written, changed, results = false, false, {}
for i = 1, #ARGV do
  local key = KEYS[i + 1]
  local old = redis.call('GET', key)
  if old == ARGV[i] then
    results[i] = 0
  else
    redis.call('SET', key, ARGV[i])
    results[i] = 1
    written = true
    changed = changed or old ~= false
  end
end
if written then redis.call('HINCRBY', KEYS[1], 'written', 1) end
if changed then redis.call('HINCRBY', KEYS[1], 'changed', 1) end
return results
