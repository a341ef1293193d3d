#!/usr/bin/env bash
# A python virtual environment with pip inside the mount, byte-compiled, used, and moved.
source "$(dirname "$0")/lib.sh"
need python3:python3
python3 -c 'import ensurepip' 2>/dev/null || "$root/scripts/packages.sh" no-such-program:python3-venv

mount_store
python3 -m venv "$mnt/venv"
"$mnt/venv/bin/python" -m pip --version >/dev/null
"$mnt/venv/bin/python" -m compileall -q "$mnt/venv/lib" || fail "compiling"
cat >"$mnt/use.py" <<'PY'
import json, mmap, multiprocessing, os, shutil, sqlite3, sys, tempfile
def work(i):
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(__file__)) as f:
        f.write(bytes([i]) * 100_000)
        f.flush()
        with mmap.mmap(f.fileno(), 0) as m:
            return sum(m[:100]) // 100
if __name__ == "__main__":
    with multiprocessing.Pool(4) as pool:
        assert pool.map(work, range(50)) == list(range(50))
    shutil.copytree(os.path.join(sys.prefix, "lib"), "copy")
    print("used")
PY
cd "$mnt"
[ "$("$mnt/venv/bin/python" "$mnt/use.py")" = used ] || fail "the environment does not work"
diff -r "$mnt/venv/lib" "$mnt/copy" || fail "the copy differs"
"$s2sfs" settle "$mnt"
[ "$("$mnt/venv/bin/python" -c 'import pip; print("settled")')" = settled ] || fail "after settling"
finish_store "made, used, copied, settled"
