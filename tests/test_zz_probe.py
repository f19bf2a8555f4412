import time
import torch, numpy as np
from kdeov_mm import KDEOV
from .test_api import write_joint, scene, SIZES
from .conftest import WORDS
def test_p(tmp_path, load_config):
    t=time.time(); p=write_joint(tmp_path, load_config); print("write", time.time()-t)
    t=time.time(); k=KDEOV.from_checkpoint(p); print("load", time.time()-t)
    pics=[scene(*s, seed=i) for i,s in enumerate(SIZES)]
    for p_,s in zip(pics,SIZES):
        try:
            t=time.time(); e=k.encode_image(p_); print(s, e.shape, e[0,:3], time.time()-t)
            d=k.open_vocabulary_detect(p_, WORDS)[0]; print(len(d["boxes"]), d["scores"][:3], time.time()-t)
        except Exception as x: print(s, type(x), x)
    same=[scene(160,160,i) for i in range(5)]+[np.full((160,160,3),c,np.uint8) for c in ([255,0,0],[0,0,255],[0,0,0])]
    e=k.encode_image(same); print((e@e.T).numpy().round(2))
    for n in ([], ""):
        try: print(repr(n), k.encode_text(n).shape)
        except Exception as x: print(repr(n), type(x), x)
    for n in ([], [""], "cat", None, [()], (w for w in "ab"), ["a","a"], [None], {"a","b"}, np.array(["a","b"]), {}, [" "]):
        try: print(repr(n), k.zero_shot_classify(pics[0], n).shape)
        except Exception as x: print(repr(n), type(x), x)
    for n in ([], torch.zeros(3,0,5), torch.zeros(3,0,5,dtype=torch.uint8), np.zeros((0,5,3),np.uint8), torch.zeros(0,3,8,8), np.zeros((0,8,8,3),np.uint8), torch.randn(3,8,8), torch.full((3,8,8),float("nan")), torch.zeros(8,8,3), np.zeros((3,8,10),np.uint8), np.zeros((8,8,4),np.uint8), np.zeros((8,8,3),np.int64),np.zeros((8,8,3)), None, 3, b"abc", [None], {}, torch.zeros(2,8,8,3), np.zeros((2,3,8,8),np.uint8), torch.zeros(3,8,8,dtype=torch.int64), torch.zeros(3,8,8,dtype=torch.bool)):
        try: print(getattr(n,"shape",n), k.encode_image(n).shape)
        except Exception as x: print(getattr(n,"shape",n), type(x), x)
    for th in (0.,1.,float("nan"),-.1,1.1,None,"a"):
        for nm in ("score_threshold","nms_threshold"):
            try: print(nm,th, len(k.open_vocabulary_detect(pics[0], WORDS,**{nm:th})[0]["boxes"]))
            except Exception as x: print(nm,th, type(x), x)
    (tmp_path/"text.pth").write_text("nope")
    (tmp_path/"empty.pth").write_bytes(b"")
    torch.save([1,2],tmp_path/"list.pth")
    torch.save(dict(meta=None),tmp_path/"none.pth")
    torch.save(dict(meta=dict(cfg="model = dict(type='ImageTextModel')")),tmp_path/"bare.pth")
    c=torch.load(p); torch.save(dict(meta=c["meta"]),tmp_path/"nostate.pth")
    torch.save(dict(meta=dict(cfg="[")),tmp_path/"syn.pth")
    for n in ("text","empty","list","none","nostate","syn","bare"):
        try: KDEOV.from_checkpoint(tmp_path/f"{n}.pth"); print(n,"ok")
        except Exception as x: print(n, type(x), str(x)[:300])
