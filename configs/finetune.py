r"""A known network is taught classes of your own and a user's S: a ResNet-18 on photographs.

    python train.py --config=configs/finetune.py --workdir=runs/mine \
        --config.init.from=resnet18.pth --config.data.name=NAME --config.data.dir=DIR \
        --config.data.num_classes=N
    python -m urnet_jax calibrate --workdir=runs/mine
    python evaluate.py --workdir=runs/mine

`init.from` is a PyTorch file or a folder of `save_pretrained`, see docs/pytorch.md; its last layer
makes way for one of N classes. NAME and DIR are your dataset, see docs/own_data.md. Another depth
is --config.model.depth=50, images that are smaller --config.data.image_size=64.

Hardware: two CPU cores at 64 px, an accelerator at 224. Time: 1.1 s a step at 64 px, batch 64, on
two cores. Expected: depends on your data. `benchmarks/finetune.py` tries it: with
--config.joint.epochs=4 on 5,987 squares of street scenes (CamVid) in 6 classes, from a network that
had seen CIFAR-10 (JPEG) for half an epoch, top-1 of 71.7, 79.4, 79.9, 80.6, 80.4 and 82.5 % on
3,729 others at S = 0.3, 0.4, 0.5, 0.6, 0.8 and 1, calibrated, each within 1.0 point of S; the
plain network, tuned as long, has 83.1 %. Not calibrated, the share is up to 6.3 points from S.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0  # of initial weights, data order, augmentation, scales and gate draws
    config.accumulate_steps = 1  # equal parts of a batch, one after another, to save memory

    config.data = data = ml_collections.ConfigDict()
    data.name = "mine"  # digits, cifar10, cifar100, imagenet2012, or your own in data.dir
    data.num_classes = 0  # of your data
    data.dir = ""  # a prepared TFDS data_dir: --config.data.dir=DIR
    data.image_size = 224  # pixels; what the network sees
    data.batch_size = 64  # of one step
    data.augment = "random_resized_crop"  # none, crop, crop_flip, or random_resized_crop
    data.crop_padding = 0  # pixels on each side before a crop; unused by random_resized_crop
    data.workers = 0  # processes that decode; 0 decodes in threads of this process
    data.threads = 8  # threads that decode, where images are not held in memory
    data.unreadable = "error"  # or skip: images that cannot be decoded are left out, and counted

    config.model = model = ml_collections.ConfigDict()
    model.kind = "resnet"  # or a description of your own, as package.module:Class
    model.family = "imagenet"  # cifar (3x3 stem, three stages), imagenet (7x7 stem, four stages)
    model.depth = 18  # 6n+2 for cifar; 18, 34, 50, 101, 152 for imagenet
    model.width = 64  # channels of the stem
    model.shortcut = "B"  # A (stride, zero-pad), pool (average-pool, zero-pad), B (projection)
    model.dtype = "float32"  # bfloat16 is faster on TPUs and recent GPUs; parameters stay float32
    model.precision = "highest"  # of float32; high and default round it on TPUs and recent GPUs
    model.gated = True  # False: the plain network
    model.gate_network = "block"  # block: a gate on every block; external: a ResNet-8 for all
    model.gate_reduction = 16  # r: the gate's hidden layer has C / r units
    # a: adds a (S - r) to a gate's logit, where r rises along a fixed order of the blocks, so that
    # S is the share of FLOPs before gates learn anything (scale.of = "flops"); 0: no such prior.
    model.gate_prior = 20.0
    model.gate_norm = False  # what a block's gate sees of the features is normalised over a batch
    model.gate_bias = 0.0  # initial bias of the gate's logit; the prior decides at first
    model.scan = "auto"  # blocks of a stage in training: loop, unroll, or auto (unroll on CPU)

    config.init = init = ml_collections.ConfigDict()
    init["from"] = ""  # a PyTorch checkpoint file to start from; "": random weights
    init.head = "new"  # the last layer begins anew; kept: the file is of the data's classes

    config.gate = gate = ml_collections.ConfigDict()
    gate.sigmoid_probability = 0.0  # p: a training gate is a sigmoid with p, else a hard step
    gate.draw = "gate"  # p is drawn per gate (of each sample), per sample, or per step
    gate.straight_through = True  # steps have the gradient of sigmoids, not none
    gate.noise = True  # a step opens by chance in training, with the probability of its sigmoid
    gate.temperature = 1.0  # of the sigmoids whose gradient steps have
    # Blocks are dropped at random until a share S is left: never, in test, or always (in training
    # too). Gates, if there are any, then only weigh what is left.
    gate.random_drop = "never"

    config.scale = scale = ml_collections.ConfigDict()
    scale.of = "flops"  # what S is a share of: blocks, or flops
    scale.min = 0.2  # S is drawn uniformly from [min, max] in training
    scale.max = 1.0  # up to 2; what is drawn above 1 is 1
    scale.draw = "group"  # per sample, per group (eight of a batch), or per step
    # ranged: any S; anchors: near a few; fixed: one, to which S falls from 1 along a cosine.
    scale.schedule = "anchors"
    scale.fixed = 1.0  # that S
    scale.noise = 0.1  # standard deviation about it on the way
    scale.anchors = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # those few S
    scale.jitter = 0.03  # S lies within so much of one
    scale.loss = "group"  # held to S: each sample's usage, or a group's (of one S) mean
    # Usage, for that loss: gates as they are in training, or as steps (gradient of sigmoids), which
    # are the gates of the test.
    scale.usage = "step"
    scale.beta = 32.0  # weight of the scale loss (equation 5)
    # Dual ascent in its place, or beside it: each anchor has a multiplier, which rises by so much
    # times what is used beyond S, until nothing is. 0: none.
    scale.dual_rate = 0.05
    # Weight of the distance of each block's openings from the prior's; it falls to 0 over the first
    # third of the training of gates, so that no block closes early for good.
    scale.guard = 1.0

    # Batch-shaping: over a batch, a gate's probabilities take the form of a Beta distribution.
    config.shaping = shaping = ml_collections.ConfigDict()
    shaping.weight = 0.0  # of the distance from it, at first
    shaping.alpha = 0.6  # of the distribution
    shaping.beta = 0.4
    shaping.mean = "prior"  # alpha / (alpha + beta); or scale: S, alpha + beta being what they are
    shaping.parts = 1  # equal parts of a batch, each with a form of its own; by scale: its groups
    shaping.fades_by = 0.0  # share of the training of gates after which that is 0; 0: it stays

    # L0: gates are to be closed, whatever the image; each pays for how likely it is open.
    config.l0 = l0 = ml_collections.ConfigDict()
    l0.weight = 0.0  # of the share of gates that are expected to be open
    l0.begins = 0.0  # share of the training of gates at which that begins to rise from 0
    l0.full = 0.0  # and at which it is there

    # With a weight above 0 each step runs the network twice, whole and resized: the whole one
    # learns from the labels, the resized one from the whole one's answers.
    config.distill = distill = ml_collections.ConfigDict()
    distill.weight = 1.0  # of the KL divergence between the two; 0: one pass, resized, from labels
    distill.temperature = 2.0  # that softens both
    distill.cross_entropy = 1.0  # weight of the labels for the resized network, at first
    distill.fades_by = 0.0  # share of the training of gates after which that is 0; 0: it stays

    # The three phases run one after another; a phase of 0 epochs is left out.
    # Plain network: S ignored, gates 1. The one that is known has behind it what this is for.
    config.pretrain = phase(epochs=0.0)
    config.gates = phase(epochs=0.0)  # Only the gates move.
    config.joint = phase(epochs=15.0)  # Everything moves.

    config.eval = ev = ml_collections.ConfigDict()
    ev.scales = (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)  # evaluated on the way and at the end
    ev.every_epochs = 5.0  # 0: only at the end of each phase
    ev.batch_size = 250

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_epochs = 1.0  # besides one at the end of each phase
    checkpoint.keep = 2  # newest checkpoints kept
    checkpoint.keep_best = 1  # and of those with the highest top-1, the mean over eval.scales

    config.log = log = ml_collections.ConfigDict()
    log.every_steps = 20
    log.tensorboard = False  # also write TensorBoard events (extra: tensorboard)
    return config


def phase(*, epochs: float) -> ml_collections.ConfigDict:
    section = ml_collections.ConfigDict()
    section.epochs = epochs  # passes over the training split
    section.init_from = ""  # workdir of a finished run whose network this phase starts from
    section.learning_rate = 0.02  # peak
    section.final_learning_rate = 0.0  # where cosine ends
    section.schedule = "cosine"  # cosine, step (x step_factor at each of step_fractions), constant
    section.step_fractions = (0.5, 0.75)  # of the phase's length
    section.step_factor = 0.1
    section.warmup_epochs = 1.0  # linear; at most half of the phase
    section.gate_optimizer = "adam"  # sgd, as the backbone's, or adam
    section.gate_learning_rate_factor = 0.1  # gates learn at so many times the backbone's rate
    section.momentum = 0.9  # Nesterov
    section.weight_decay = 1e-4  # of kernels; norms, biases and gates are spared
    section.clip_norm = 1.0  # of the global gradient; 0: no clipping
    section.ema_decay = 0.0  # 0: no average; else evaluation uses averaged parameters, with
    # BatchNorm statistics that are measured for them
    return section
