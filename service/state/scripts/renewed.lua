-- Note that the expiry of a user's clicked videos was moved on. KEYS: meta.
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('SETRANGE', KEYS[1], 20, struct.pack('>I4', redis.call('TIME')[1]))
end
