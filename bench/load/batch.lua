-- wrk: POST 1,000 readings that nobody has sent before, with the token BENCH_TOKEN: those of bench/contract.py,
-- from batch number BENCH_FIRST on.
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCH_TOKEN")

local BATCH = 1000
local number = tonumber(os.getenv("BENCH_FIRST"))
local epoch = tonumber(os.getenv("BENCH_EPOCH"))
local pieces, values = {}, {}
for n = 0, BATCH - 1 do
   values[n] = string.format('{"metric": "m%d", "ts": %%.0f, "value": %s}', n % 10, 20 + n / 100)
end

function request()
   local start = epoch + number * BATCH
   for n = 0, BATCH - 1 do
      pieces[n + 1] = string.format(values[n], start + n)
   end
   number = number + 1
   return wrk.format(nil, nil, nil, "[" .. table.concat(pieces, ", ") .. "]")
end
