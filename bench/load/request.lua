-- wrk: the request that the environment describes, BENCH_METHOD with the token BENCH_TOKEN and the body
-- of the file BENCH_BODY (each may be empty). BENCH_COLD=1 gives each request an X-Request-ID of its own,
-- BENCH_CLOSES=1 a connection of its own, BENCH_DEVICES=N the number of the next of N devices for the @ of
-- its path.
wrk.method = os.getenv("BENCH_METHOD")
if os.getenv("BENCH_TOKEN") ~= "" then
   wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCH_TOKEN")
end
if os.getenv("BENCH_CLOSES") == "1" then
   wrk.headers["Connection"] = "close"
end
if os.getenv("BENCH_BODY") ~= "" then
   local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
   wrk.body = file:read("*a")
   file:close()
   wrk.headers["Content-Type"] = "application/json"
end

-- Without a function of this name wrk sends the same bytes again and again, which costs it least.
if os.getenv("BENCH_COLD") == "1" then
   local before, after
   -- The warm-up has used other ids.
   local number = os.time() * 1000000

   function init()
      wrk.headers["X-Request-ID"] = "@"
      local text = wrk.format()
      local first, last = text:find("X-Request-ID: @", 1, true)
      before, after = text:sub(1, last - 1) .. "bench-", text:sub(last + 1)
   end

   function request()
      number = number + 1
      return string.format("%s%.0f%s", before, number, after)
   end
end

if tonumber(os.getenv("BENCH_DEVICES")) > 0 then
   local devices = tonumber(os.getenv("BENCH_DEVICES"))
   local requests = {}
   local last = 0

   function init()
      for n = 1, devices do
         requests[n] = wrk.format(nil, (wrk.path:gsub("@", n - 1, 1)))
      end
   end

   function request()
      last = last % devices + 1
      return requests[last]
   end
end
