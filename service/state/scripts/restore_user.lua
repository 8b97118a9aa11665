-- Put a user where there is none. KEYS: history, meta.
-- ARGV: meta, time to live in ms (-1: none), entries. Returns 1 if put.
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
redis.call('SET', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[1])
if #ARGV > 2 then redis.call('RPUSH', KEYS[1], unpack(ARGV, 3)) end
if ARGV[2] ~= '-1' then
  -- 0 is a life that ends now: that is no life without end.
  local life = string.format('%.0f', math.max(1, tonumber(ARGV[2])))
  redis.call('PEXPIRE', KEYS[1], life)
  redis.call('PEXPIRE', KEYS[2], life)
end
return 1
