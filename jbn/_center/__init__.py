"""A batch about its pivot: sums over the batch, their derivative, and merging over devices.

E[x^2] - E[x]^2 cancels when the mean is large: at mean/std 1e4 in float32 it is NaN. Here, sums are
taken of `deviation = x - pivot` with a pivot near the mean, and three rules keep them exact:
- pivot and remainder (the mean of the deviation) are not rounded into one number before x is
  normalized: (x - pivot) - remainder has an error of 1e-6 where x - (pivot + remainder) has 4e-3;
- devices exchange (pivot, remainder, std, count) and merge those, not sums about zero, unless all
  share a pivot;
- neither y nor a gradient is computed through a square or a cube that is out of float32's range:
  where x is that large, or that small, deviations are in units of a power of two for each feature,
  and the variance that is differentiated is relative to var + epsilon.

Notation, for x = 1000, 1001, 1005 and the pivot 1000: the deviation is 0, 1, 5; remainder, its
mean, 2; mean = pivot + remainder = 1002; var = (0 + 1 + 25) / 3 - 2^2 = 14 / 3; and
y = (deviation - remainder) / sqrt(var + epsilon).

References: Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", 1983: shifted
sums, merge of parts. Ioffe, Szegedy, "Batch Normalization", 2015, Algorithm 1 and section 3.

Files, bottom up: `_arithmetic`; `_residual`, which is kept for the backward pass; `_sums` over one
device's part, computed differently on each platform; `_merge` of parts; `_values`, which combines
both; their `_derivative`; `_centered`, which callers use.
"""

from jbn._center._arithmetic import abs_squared as abs_squared
from jbn._center._arithmetic import power_of_two as power_of_two
from jbn._center._arithmetic import root as root
from jbn._center._arithmetic import rstd as rstd
from jbn._center._centered import Centered as Centered
from jbn._center._centered import center as center
from jbn._center._merge import merge as merge
from jbn._center._merge import pooled as pooled
