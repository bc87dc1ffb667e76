"""The complete model in NumPy float64, token by token, as literally as the equations state it.

Parameters are a nested dict of arrays, as `flax.nnx.to_pure_dict` returns them. A text is read one
token after another; long-term memory is a list of positions that is rebuilt when a chunk is
complete.
"""

import dataclasses
import itertools

import numpy as np


@dataclasses.dataclass
class Trace:
    """What one layer computed on one text."""

    x: np.ndarray  # [T, D] residual stream after the layer
    h: np.ndarray  # [T, D]
    decay: np.ndarray  # [T, D] factor on h_{t-1}
    s: np.ndarray  # [T, H] saliencies
    fading: np.ndarray  # [T, H] how they fall with age
    # Use: the largest probability that a query of each chunk gives each token after it has left
    # short-term memory, without evictions; -1 if no query of the chunk could have used it.
    used: np.ndarray  # [chunks, T, H]
    uboo: float
    banks: list  # for each head the positions in long-term memory after the last token


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x * sigmoid(x)


def rms_norm(x, scale):
    return scale * np.sqrt(len(x)) * x / np.sqrt(np.sum(x**2) + 1e-4)


def linear(x, layer):
    return x @ layer["kernel"] + layer.get("bias", 0.0)


def mlp(x, layers):
    return linear(gelu(linear(x, layers["up"])), layers["down"])


def rotate(x, steps):
    """Channels j and j + K/2 turned by steps * 10000^(-2j/K)."""
    half = len(x) // 2
    angle = steps * 10_000.0 ** (-2 * np.arange(half) / len(x))
    first, second = x[:half], x[half:]
    return np.concatenate(
        [
            first * np.cos(angle) - second * np.sin(angle),
            second * np.cos(angle) + first * np.sin(angle),
        ]
    )


def core_loop(z, gamma, zm, W, b_g, h0, start, mu):
    """h_t for every step of z [B, T, D]. W is [W_g ; h part of W_m], and zm is z_t W_mz + b_m."""
    dim = z.shape[-1]
    states = np.zeros(z.shape)
    for b in range(z.shape[0]):
        h = h0[b]
        for t in range(z.shape[1]):
            if start[b, t]:
                h = np.zeros(dim)
            g = sigmoid(h @ W[:, :dim] + b_g)
            m = sigmoid(h @ W[:, dim:] + zm[b, t])
            h = (g + mu * m) * z[b, t] + (gamma[b, t] + mu * (1 - m + gamma[b, t])) * h
            states[b, t] = h
    return states


def softmax(logits):
    weights = np.exp(logits - np.max(logits))
    return weights / np.sum(weights)


def number_documents(documents):
    """Numbers that increase wherever the document id changes, because an id may recur."""
    numbers = [0]
    for before, now in itertools.pairwise(documents):
        numbers.append(numbers[-1] + int(now != before))
    return np.array(numbers)


def forecast(config, s, fading, age):
    """The logit of use, `age` chunks after a token has left short-term memory."""
    return s - fading * np.log(1 + min(age, config.oldest_age))


def select(forecasts, candidates, slots):
    """The `slots` positions of highest forecast; among equal ones (at most 1e-4 apart), the newer.

    `forecasts` is a mapping from positions or an array.
    """

    def rank(j):
        return max(forecasts[i] for i in candidates if forecasts[i] <= forecasts[j] + 1e-4)

    return sorted(candidates, key=lambda j: (-rank(j), -j))[:slots]


def say_the_same(keys, values, head, i, j):
    """Whether the keys and the values of two tokens have nearly one direction."""
    cosines = [
        x[i, head] @ x[j, head] / max(np.linalg.norm(x[i, head]) * np.linalg.norm(x[j, head]), 1e-9)
        for x in (keys, values)
    ]
    return np.mean(cosines) > 0.9


def run_layer(params, config, x, document):
    """One layer over one text. x: [T, D]; document: [T], numbers that never decrease."""
    time, dim = x.shape
    heads, width = config.num_heads, config.dim // config.num_heads
    chunk_len, short_term, slots = config.chunk_len, config.short_term, config.long_term
    mu = config.mu
    gamma_max = (1 - mu) / (1 + mu)

    def age(begin, j):  # in chunks, of token j for the chunk that begins there
        return (begin - j - short_term - 1) // chunk_len

    h = np.zeros(dim)
    last_k, last_p = np.zeros(dim), None
    keys = np.zeros((time, heads, width))
    values = np.zeros((time, heads, width))
    trace = Trace(
        x=np.zeros((time, dim)),
        h=np.zeros((time, dim)),
        decay=np.zeros((time, dim)),
        s=np.zeros((time, heads)),
        fading=np.zeros((time, heads)),
        used=np.full((-(-time // chunk_len), time, heads), -1.0),
        uboo=0.0,
        banks=[[] for _ in range(heads)],
    )

    for t in range(time):
        if t == 0 or document[t] != document[t - 1]:
            h = np.zeros(dim)
            last_k, last_p = np.zeros(dim), None
        u = rms_norm(x[t], params["norm1"]["scale"])
        q, k, v, z, p, e = np.split(linear(u, params["W_fused"]), 6)
        last_p = p if last_p is None else last_p

        # Recurrent memory.
        logit = mlp(z, params["mlp_gamma"])
        if config.use_dpg:
            logit = logit + linear(np.maximum(linear(z, params["W_down"]), 0), params["W_up"])
        gamma = gamma_max * sigmoid(logit) * sigmoid(mlp(k, params["mlp_context"]))
        g = sigmoid(linear(h, params["W_g"]))
        m = sigmoid(linear(np.concatenate([z, h]), params["W_m"]))
        h_prev = h
        trace.decay[t] = gamma + mu * (1 - m + gamma)
        h = (g + mu * m) * z + trace.decay[t] * h
        trace.h[t] = h
        if config.use_uboo:
            error = mlp(h, params["mlp_err"]) - mlp(h_prev, params["mlp_target"])
            trace.uboo += np.mean(error**2) / time

        # Short- and long-term memory.
        query = linear(h, params["W_q"]) + q / 2
        window_start = t // chunk_len * chunk_len - short_term
        window = [j for j in range(max(window_start, 0), t + 1) if document[j] == document[t]]
        older = [j for j in range(max(window_start, 0)) if document[j] == document[t]]
        read = []
        for head in range(heads):
            channels = slice(head * width, (head + 1) * width)
            shifted = config.shifted_keys and head % 2 == 0
            keys[t, head] = (last_k if shifted else k)[channels]
            values[t, head] = v[channels]
            from_last = shifted & (np.arange(width) % (width / 2) < width / 4)
            evidence = np.where(from_last, last_p[channels], p[channels])
            first, second = np.split(evidence, 2)
            trace.s[t, head] = np.sqrt(width) / 16 * np.mean(first)
            trace.fading[t, head] = np.log(1 + np.exp(np.sqrt(width) / 16 * np.mean(second)))

            query_head = query[channels]
            near = [rotate(query_head, t - j) @ keys[j, head] / np.sqrt(width) for j in window]
            bank = [j for j in trace.banks[head] if document[j] == document[t]]
            # From S + C + M tokens before the chunk on, they are all read as if they were there.
            most = short_term + chunk_len + slots
            begin = t // chunk_len * chunk_len
            far = {
                j: rotate(query_head, min(begin - j, most) + t - begin) @ keys[j, head]
                for j in older
            }
            far = {j: logit / np.sqrt(width) for j, logit in far.items()}
            weights = softmax(np.array(near + [far[j] for j in bank]))
            read.append(weights @ values[window + bank, head])

            probability = softmax(np.array([*near, *far.values()]))[len(near) :]
            used = trace.used[t // chunk_len, :, head]
            used[older] = np.maximum(used[older], probability)
        last_k, last_p = k, p

        a = linear(np.concatenate(read), params["W_o"])
        middle = x[t] + (h + a + v / 10) * silu(e)
        hidden = gelu(linear(rms_norm(middle, params["norm2"]["scale"]), params["W_1"]))
        trace.x[t] = middle + linear(hidden, params["W_2"])

        if (t + 1) % chunk_len == 0:  # consolidation
            leaving = range(max(window_start, 0), max(window_start + chunk_len, 0))
            for head in range(heads):
                candidates = [
                    j for j in [*trace.banks[head], *leaving] if document[j] == document[t]
                ]
                dropped = set()
                forecasts = {
                    j: forecast(config, trace.s[j, head], trace.fading[j, head], age(t + 1, j))
                    for j in candidates
                }
                for i in (i for i in leaving if document[i] == document[t]):
                    same = [
                        j for j in forecasts if j < i and say_the_same(keys, values, head, i, j)
                    ]
                    dropped.update(j if forecasts[j] <= forecasts[i] + 1e-4 else i for j in same)
                candidates = [j for j in candidates if j not in dropped]
                trace.banks[head] = select(forecasts, candidates, slots)
    return trace


def run_text(params, config, tokens, documents):
    """Logits [T, V] of one text from an empty state, and each layer's trace."""
    document = number_documents(documents)
    embedding = params["embedding"]["embedding"]
    x = embedding[tokens]
    traces = []
    for index in range(config.num_layers):
        traces.append(run_layer(params["blocks"][index], config, x, document))
        x = traces[-1].x
    logits = np.stack([rms_norm(row, params["norm"]["scale"]) @ embedding.T for row in x])
    return logits, traces


def run_model(params, config, tokens, documents):
    """Logits [B, T, V] and, for each text, each layer's trace."""
    texts = [run_text(params, config, *text) for text in zip(tokens, documents, strict=True)]
    return np.stack([logits for logits, _ in texts]), [traces for _, traces in texts]


def saliency_loss(config, traces):
    """Binary cross-entropy between forecast and use: the mean per layer, then over layers."""
    losses = []
    for layer in range(len(traces[0])):
        terms = []
        for trace in (text[layer] for text in traces):
            for chunk, j, head in np.argwhere(trace.used >= 0):
                begin, used = chunk * config.chunk_len, trace.used[chunk, j, head]
                age = (begin - j - config.short_term - 1) // config.chunk_len
                logit = forecast(config, trace.s[j, head], trace.fading[j, head], age)
                terms.append(-used * np.log(sigmoid(logit)) - (1 - used) * np.log(sigmoid(-logit)))
        losses.append(np.mean(terms))
    return np.mean(losses)


def uboo_loss(traces):
    """The mean over texts and time, and the sum over layers."""
    return np.mean([sum(trace.uboo for trace in text) for text in traces])
