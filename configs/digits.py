"""The default: a gated ResNet-20 on scikit-learn's digits, real scans that ship with the library.

    python train.py --config=configs/digits.py --workdir=runs/digits
    urnet calibrate --workdir=runs/digits
    python evaluate.py --workdir=runs/digits

Hardware: two CPU cores. Time: about two minutes. Expected: top-1 of about 99 % on the 360 held-out
images at S = 0.2 to 1, with as large a share of the FLOPs; see results/digits. docs/knob.md has the
recipe; the guard and the controller are stronger here, for a run has only a thousand steps.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0  # of initial weights, data order, augmentation, scales and gate draws
    config.accumulate_steps = 1  # equal parts of a batch, one after another, to save memory

    config.data = data = ml_collections.ConfigDict()
    data.name = "digits"  # digits, cifar10, cifar100, imagenet2012, or your own in data.dir
    data.num_classes = 0  # of data of your own; 0: as many as the named dataset has
    data.dir = ""  # a prepared TFDS data_dir; the embedded digits need none
    data.image_size = 8  # pixels; what the network sees
    data.batch_size = 64  # of one step
    data.augment = "crop"  # none, crop (pad and crop), crop_flip, or random_resized_crop; of
    # label maps none, or scale_crop_flip (by half to twice, crop to image_size, mirror)
    data.crop_padding = 1  # pixels on each side before a crop
    data.workers = 0  # processes that decode; 0 decodes in threads of this process
    data.threads = 8  # threads that decode, where images are not held in memory
    data.unreadable = "error"  # or skip: images that cannot be decoded are left out, and counted
    data.labels = "class"  # of an image, or map: of each of its pixels
    data.ignored_label = -1  # of a map: its pixels count nowhere; -1: all count
    data.eval_size = ()  # of maps: height and width in pixels that whole images are evaluated at

    config.model = model = ml_collections.ConfigDict()
    model.kind = "resnet"  # or a description of your own, as package.module:Class
    model.family = "cifar"  # cifar (3x3 stem, three stages), imagenet (7x7 stem, four stages)
    model.depth = 20  # 6n+2 for cifar; 18, 34, 50, 101, 152 for imagenet
    model.width = 16  # channels of the stem
    model.shortcut = "A"  # A (stride, zero-pad), pool (average-pool, zero-pad), B (projection)
    model.dtype = "float32"  # of the computation, or bfloat16; parameters stay float32
    model.precision = "highest"  # of float32; high and default round it on TPUs and recent GPUs
    model.gated = True  # False: the plain network
    model.gate_network = "block"  # block: a gate on every block; external: a ResNet-8 for all
    model.gate_reduction = 2  # r: the gate's hidden layer has C / r units
    # a: adds a (S - r) to a gate's logit, where r rises along a fixed order of the blocks, so that
    # S is the share of FLOPs before gates learn anything (scale.of = "flops"); 0: no such prior.
    model.gate_prior = 20.0
    model.gate_norm = True  # what a block's gate sees of the features is normalised over a batch
    model.gate_bias = 0.0  # initial bias of the gate's logit; positive: gates begin open
    model.scan = "auto"  # blocks of a stage in training: loop, unroll, or auto (unroll on CPU)

    config.init = init = ml_collections.ConfigDict()
    init["from"] = ""  # a PyTorch checkpoint file to start from; "": random weights
    init.head = "kept"  # or new: the file is of other classes, and a new last layer begins

    config.gate = gate = ml_collections.ConfigDict()
    # p: a training gate is a sigmoid with p, else a hard step. The paper's 0.1 is for steps without
    # a gradient.
    gate.sigmoid_probability = 0.0
    gate.draw = "gate"  # p is drawn per gate (of each sample), per sample, or per step
    gate.straight_through = True  # steps have the gradient of sigmoids, not none
    gate.noise = True  # a step opens by chance in training, with the probability of its sigmoid
    gate.temperature = 1.0  # of the sigmoids whose gradient steps have
    # Blocks are dropped at random until a share S is left: never, in test, or always (in training
    # too). Gates, if there are any, then only weigh what is left.
    gate.random_drop = "never"

    config.scale = scale = ml_collections.ConfigDict()
    scale.of = "flops"  # what S is a share of: blocks, or flops
    # S is drawn uniformly from [min, max] in training; what is drawn above 1 is 1. The network is
    # to be used from 0.2 to 1, and meets both ends if it is also asked for what lies behind them.
    scale.min = 0.1
    scale.max = 1.1
    # Per sample, per group, or per step. A batch has eight groups; one whose size is no multiple of
    # eight has as many as divide it, of 1, 2, 4.
    scale.draw = "group"
    # ranged: any S; anchors: near a few; fixed: one, to which S falls from 1 along a cosine.
    scale.schedule = "anchors"
    scale.fixed = 1.0  # that S
    scale.noise = 0.1  # standard deviation about it on the way
    scale.anchors = (0.2, 0.25, 0.3, 0.36, 0.44, 0.54, 0.66, 0.82)  # closest where S is small
    scale.jitter = 0.02  # S lies within so much of one
    # Held to S: each sample's usage, or a group's (of one S) mean, which can meet an S that is no
    # number of whole blocks.
    scale.loss = "group"
    # Usage, for that loss: gates as they are in training, or as steps (gradient of sigmoids), which
    # are the gates of the test.
    scale.usage = "step"
    # Weight of the scale loss (equation 5); the paper takes 2. Where the two losses balance, usage
    # lies above S by the cross entropy's gradient over 2 beta.
    scale.beta = 32.0
    # Dual ascent in its place, or beside it: each anchor has a multiplier, which rises by so much
    # times what is used beyond S, until nothing is. 0: none.
    scale.dual_rate = 0.3
    # Weight of the distance of each block's openings from the prior's; it falls to 0 over the first
    # third of the training of gates, so that no block closes early for good.
    scale.guard = 5.0

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
    distill.weight = 0.5  # of the KL divergence between the two; 0: one pass, resized, from labels
    distill.temperature = 2.0  # that softens both
    distill.cross_entropy = 0.5  # weight of the labels for the resized network, at first
    distill.fades_by = 0.0  # share of the training of gates after which that is 0; 0: it stays

    # The three phases run one after another; a phase of 0 epochs is left out.
    config.pretrain = phase(epochs=0.0, learning_rate=0.1)  # plain network: S ignored, gates 1
    config.gates = phase(epochs=0.0, learning_rate=0.1)  # only the gates move
    config.joint = phase(epochs=45.0, learning_rate=0.1)  # everything moves
    # Adam with 3e-3, then 4e-3: the scale loss reaches each of N gates divided by N, too little for
    # the backbone's rate, and SGD with a larger one leaves hidden units dead.
    for section, factor in ((config.gates, 0.03), (config.joint, 0.04)):
        section.gate_optimizer = "adam"
        section.gate_learning_rate_factor = factor

    config.eval = ev = ml_collections.ConfigDict()
    ev.scales = (0.2, 0.3, 0.4, 0.6, 0.8, 1.0)  # evaluated on the way and at the end
    ev.every_epochs = 10.0  # 0: only at the end of each phase
    ev.batch_size = 360

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_epochs = 10.0  # besides one at the end of each phase
    checkpoint.keep = 2  # newest checkpoints kept
    checkpoint.keep_best = 1  # and of those with the highest top-1, the mean over eval.scales

    config.log = log = ml_collections.ConfigDict()
    log.every_steps = 20
    log.tensorboard = False  # also write TensorBoard events (extra: tensorboard)
    return config


def phase(*, epochs: float, learning_rate: float) -> ml_collections.ConfigDict:
    section = ml_collections.ConfigDict()
    section.epochs = epochs  # passes over the training split
    section.init_from = ""  # workdir of a finished run whose network this phase starts from
    section.learning_rate = learning_rate  # peak
    section.final_learning_rate = 0.0  # where cosine ends
    section.schedule = "cosine"  # cosine, step (x step_factor at each of step_fractions), constant
    section.step_fractions = (0.5, 0.75)  # of the phase's length
    section.step_factor = 0.1
    section.warmup_epochs = 1.0  # linear; at most half of the phase
    section.gate_optimizer = "sgd"  # sgd, as the backbone's, or adam
    section.gate_learning_rate_factor = 1.0  # gates learn this many times faster than the backbone
    section.momentum = 0.9  # Nesterov
    section.weight_decay = 5e-4  # of kernels; norms, biases and gates are spared
    section.clip_norm = 1.0  # of the global gradient; 0: no clipping
    section.ema_decay = 0.0  # 0: no average; else evaluation uses averaged parameters, with
    # BatchNorm statistics that are measured for them
    return section
