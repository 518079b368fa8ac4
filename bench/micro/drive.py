import asyncio, sys, time, tempfile, pathlib, gc, os
import uvloop
sys.path.insert(0, os.getcwd())
from server import logs
from server.app import Gate
from server.settings import load
from server.identity import key_ring, token_issuer

class T(asyncio.Transport):
    def __init__(self): super().__init__(); self.n=0; self.last=b''
    def write(self,d): self.n+=1; self.last=d
    def get_extra_info(self,n,default=None): return ('127.0.0.1',1) if n=='peername' else default
    def close(self): pass
    def is_closing(self): return False
    def pause_reading(self): pass
    def resume_reading(self): pass
    def set_write_buffer_limits(self,*a): pass
    def get_write_buffer_size(self): return 0

async def main():
    d=tempfile.mkdtemp()
    s=load({"TIDEGATE_DATA":d,"TIDEGATE_RATE_LIMIT":"100000000","TIDEGATE_POINT_LIMIT":"1000000000"})
    log=await asyncio.to_thread(logs.setup,"info",False)
    async with Gate.open(s,log,lambda:None) as g:
        tok=token_issuer(s,key_ring(s)).issue("b",["readings:write","readings:read"],["bench.>"],3600)[0]
        head=(f"Host: x\r\nAuthorization: Bearer {tok}\r\n").encode()
        body=b'{"metric": "temperature", "value": 21.5}'
        post=b"POST /v1/devices/bench.one/readings HTTP/1.1\r\n"+head+b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"%len(body)+body
        get=b"GET /v1/devices/bench.one/latest HTTP/1.1\r\n"+head+b"\r\n"
        conns=[]
        for _ in range(64):
            p=g.server(); t=T(); p.connection_made(t); conns.append((p,t))
        await asyncio.sleep(0.05)
        async def settle(n):
            await g.commit.drain()
            while conns[-1][1].n*64<n: await asyncio.sleep(0.0001)
        gc.collect(); gc.freeze(); gc.set_threshold(50_000, 20, 50); total=0
        for r in range(3):
            for p,t in conns: p.data_received(post)
            total+=64; await settle(total)
        for r in range(3):
            for p,t in conns: p.data_received(get)
            total+=64; await settle(total)
        assert conns[0][1].last.startswith(b"HTTP/1.1 200"), conns[0][1].last
        if len(sys.argv)>1 and sys.argv[1]=='prof':
            import cProfile,pstats
            pr=cProfile.Profile(); pr.enable()
            for _ in range(300):
                for p,t in conns: p.data_received(get if sys.argv[2]=='get' else post)
                if sys.argv[2]!='get': total+=64; await settle(total)
            pr.disable(); pstats.Stats(pr).sort_stats('tottime').print_stats(35)
            return
        best=1e9
        for _ in range(30):
            c=time.process_time()
            for _ in range(20):
                for p,t in conns: p.data_received(get)
            best=min(best,(time.process_time()-c)/1280)
        total+=30*1280
        print(f"GET in lane {best*1e6:.2f} us")
        i=0
        def cold():
            nonlocal i; i+=1
            return b"GET /v1/devices/bench.one/latest HTTP/1.1\r\n"+head+b"X-Request-ID: r%d\r\n\r\n"%i
        best=1e9
        for _ in range(15):
            reqs=[cold() for _ in range(640)]
            c=time.process_time()
            for k,r in enumerate(reqs): conns[k%64][0].data_received(r)
            best=min(best,(time.process_time()-c)/640)
        total+=15*640
        print(f"GET cold {best*1e6:.2f} us")
        await settle(total)
        best=1e9; bm=1e9
        for _ in range(30):
            c=time.process_time(); m=0
            for _ in range(10):
                m0=time.thread_time()
                for p,t in conns: p.data_received(post)
                total+=64
                m+=time.thread_time()-m0
                await settle(total)
            best=min(best,(time.process_time()-c)/640); bm=min(bm,m/640)
        print(f"POST all {best*1e6:.2f} us, until submitted {bm*1e6:.2f} us")
        for p,t in conns: p.connection_lost(None)
uvloop.run(main())
os._exit(0)
