"""Exact gradient norms of the entropy, image by image, for about an ordinary training step (LPLgrad, arXiv 2411.15217).

    x, n, N    an image, its number, how many            z, p    logits, class probabilities
    H          entropy of p                              T       temperature: p = softmax(z / T), 1 in the paper
    t          a parameter tensor                        g(x)    sum over t of || dH(x) / dt ||_F: the score
    a, G       what enters a layer; a weight's gradient  g       dH / d(a layer's output)

g(x) is the sum of the tensors' norms, as in the authors' published code, and not the norm of the whole gradient.

How a batch costs about as much as reading it (see the modules):
    entropy      dH/dz in closed form starts the backward pass
    trace        one look at the network finds where parameters meet images, and proves that none is missed
    replay       runs the network with those places exchanged for sites
    site, layers, convolution, products, activation    rules: ||G|| of each image without a backward pass of its own
    squeeze      squeeze and excitation, on the way back in one piece
    matrices, packing    products and convolutions, by the faster of torch's libraries
    assembly, places, narrow    loops that torch has no call for: sums, ways back, gradients of few channels
    winograd, winograd_forms, winograd_tiles, winograd_choice    3x3 convolutions with fewer multiplications, and where they
                 are faster
    tally        adds up, tensor by tensor
    fallback     the slow exact ways, where something is not proved
    scorer       batches, memory, errors: what callers use
"""

from lplgrad_backend.lplgrad.gradnorm.scorer import GradientNorms, Measurement, SlowGradientNorms, gradient_norms

__all__ = ["GradientNorms", "Measurement", "SlowGradientNorms", "gradient_norms"]
