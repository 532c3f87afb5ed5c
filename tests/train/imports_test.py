import subprocess
import sys

CODE = """
import sys
import urnet_jax.train.loop
print([name for name in ("matplotlib", "torch", "tensorflow") if name in sys.modules])
"""


def test_training_imports_no_library_that_it_does_not_need():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
