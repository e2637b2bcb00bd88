-- For wrk: wrk -s bench/gateway_load.lua URL -- FOLDER TEXTS OFFSET
-- The pieces of a request lie in FOLDER (bench/gateway_requests.py); what came of the run is printed as one line of JSON.
local head, filler, middle, tail
local texts, position, count, room = {}, 0, 0, 0

local function read(path)
  local file = assert(io.open(path, "rb"))
  local content = file:read("*a")
  file:close()
  return content
end

function init(arguments)
  local folder = arguments[1]
  head, filler = read(folder .. "/head"), read(folder .. "/filler")
  middle, tail = read(folder .. "/middle"), read(folder .. "/tail")
  room = #filler
  for line in io.lines(arguments[2]) do
    count = count + 1
    texts[count] = line
  end
  position = tonumber(arguments[3])
end

function request()
  local pass = math.floor(position / count)
  local text = texts[position % count + 1]
  if pass > 0 then
    text = text .. " " .. pass
  end
  position = position + 1
  return head .. filler:sub(1, room - #text) .. middle .. text .. tail
end

function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format(
    '{"requests":%d,"seconds":%.6f,"refused":%d,"broken":%d,"bytes":%d,"p50_ms":%.3f,"p99_ms":%.3f}',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout, summary.bytes,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
