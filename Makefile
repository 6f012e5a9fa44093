# Every target sets up .venv first when it is missing or older than pyproject.toml, and only then.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: lab run test test-slow test-gpu lint figures bench clean

lab: .venv/ready        ## JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

run: .venv/ready        ## execute the course, in order, in the profile that fits this machine
	$(BIN)/python -m common run

# Two processes, each with whole files, and one thread each: more would wait for each other.
test: .venv/ready       ## unit tests, and every notebook in the smoke profile
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval-lax -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/ready  ## what needs minutes by its nature: kills, random input, a browser
	OMP_NUM_THREADS=1 RANDOM_CASES=1000 $(BIN)/python -m pytest tests -m "slow or random" -n 2

# Without a GPU: what one would refuse, such as a tensor that was left behind on the CPU.
NEAR_A_GPU := $(addprefix tests/test_,$(addsuffix .py,advice before_training checkpoints graphs look probe train weights))
test-gpu: .venv/ready   ## the tests of training, probes and pictures on a pretended GPU
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(NEAR_A_GPU) -p tests.pretend_gpu -n 2 --dist loadfile

lint: .venv/ready       ## the fast checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

figures: .venv/ready    ## redraw figures/ from the models
	$(BIN)/python -m tools.figures

bench: .venv/ready      ## our training and loading against conventional ones, on this machine
	$(BIN)/python -m tools.bench

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:                  ## remove what the targets above made, except .venv
	rm -rf build .pytest_cache .ruff_cache
