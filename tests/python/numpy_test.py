"""allnorm.numpy: every layer of the catalogue on arrays, its gradients by central differences, ranks, state, errors.

usage: ALLNORM_LIBRARY=.../liballnorm.so PYTHONPATH=python python3 -m unittest tests/python/numpy_test.py
"""

import contextlib
import io
import pathlib
import unittest

import numpy as np

import allnorm
from allnorm.numpy import Layer, run, threads

N, C, SPACE = 3, 4, (2, 5)


def normal(rng, shape):
    return rng.standard_normal(shape)


class Catalogue(unittest.TestCase):
    """What cannot be made from shapes alone is said here, layer by layer."""

    ATTRIBUTES = {
        "sync_batch_norm": "sync=none",  # ranks have tests of their own
        "batch_renorm": "r_max=1:d_max=0",  # r and d are no functions of the input: no gradient flows through them
        "group_norm": "groups=2",
        "cross_iteration_batch_norm": "compensate=false",
        "switchable_norm": "unbiased_instance_var=true",
        "decorrelated_batch_norm": "group_size=2",
        "iterative_norm": "group_size=2:iterations=3",
    }

    def case(self, name, rng):
        attributes = self.ATTRIBUTES.get(name)
        text = name + (":" + attributes if attributes else "")
        if name == "cosine_norm":
            return text, normal(rng, (N, 5)), {"weight": normal(rng, (C, 5))}
        x = normal(rng, (N, C, *SPACE)) * 1.5 + 0.3
        more = {}
        if name == "conditional_instance_norm":
            more = {"styles": np.array([1, 0, 1]), "weight": normal(rng, (2, C)), "bias": normal(rng, (2, C))}
        if name == "adaptive_instance_norm":
            more = {"style": normal(rng, (N, C, 7))}
        if name == "weight_norm":
            more = {"g": normal(rng, (N,))}
        return text, x, more

    def given(self, layer, x, more, rng):
        """Values for every tensor whose shape follows from the input's."""
        tensors = dict(more)
        for slot in layer._slots.values():
            name = slot.name.decode()
            if slot.kind != allnorm._library.INPUT or name in tensors:
                continue
            try:
                tensors[name] = normal(rng, layer.shape(name, x.shape)) * 0.5 + 1
            except allnorm.Error as error:
                self.assertEqual(error.code, "unsupported")
        return tensors

    def test_gradients_are_central_differences(self):
        self.assertGreaterEqual(len(allnorm.layers()), 20)
        for name, summary in allnorm.layers().items():
            rng = np.random.default_rng(7)
            with self.subTest(layer=name):
                self.assertTrue(summary)
                text, x, more = self.case(name, rng)
                channels = x.shape[1]
                tensors = self.given(Layer(text, channels), x, more, rng)

                def output(x, tensors):
                    return Layer(text, channels).forward(x, **tensors)

                layer = Layer(text, channels)
                y = layer.forward(x, **tensors)
                dy = normal(rng, y.shape)
                gradients = layer.backward(dy)
                self.assertIn("input", gradients)
                floating = {n: v for n, v in {"input": x, **tensors}.items() if n in gradients}
                for slot, values in floating.items():
                    self.assertEqual(gradients[slot].shape, values.shape)
                    for _ in range(4):
                        at = tuple(rng.integers(extent) for extent in values.shape)
                        step = 1e-5
                        sides = []
                        for sign in (1, -1):
                            moved = values.copy()
                            moved[at] += sign * step
                            changed = {n: moved if n == slot else v for n, v in {"input": x, **tensors}.items()}
                            sides.append((output(changed.pop("input"), changed) * dy).sum())
                        want = (sides[0] - sides[1]) / (2 * step)
                        self.assertAlmostEqual(gradients[slot][at], want, delta=1e-6 * (1 + abs(want)), msg=f"{slot}{at}")


class Arrays(unittest.TestCase):
    def setUp(self):
        self.rng = np.random.default_rng(3)

    def batch_norm(self, x):
        axes = (0, *range(2, x.ndim))
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-5)

    def test_memory_with_the_channels_last_is_taken_as_it_lies(self):
        x = np.moveaxis(normal(self.rng, (N, *SPACE, C)), -1, 1)
        layer = Layer("batch_norm", C)
        y = layer.forward(x)
        self.assertTrue(np.moveaxis(y, 1, -1).flags.c_contiguous)
        np.testing.assert_allclose(y, self.batch_norm(x), rtol=0, atol=1e-14)
        dx = layer.backward(np.ones(x.shape))["input"]  # of the other order: brought into the input's
        self.assertTrue(np.moveaxis(dx, 1, -1).flags.c_contiguous)
        np.testing.assert_allclose(dx, 0, atol=1e-14)
        crooked = normal(self.rng, (N, C, 4, 6))[:, :, ::2, 1::2]  # not dense: copied
        np.testing.assert_allclose(layer.forward(crooked), self.batch_norm(crooked), rtol=0, atol=1e-14)

    def test_types(self):
        x = normal(self.rng, (N, C, *SPACE))
        for dtype, unit in (("float32", 1e-6), ("float16", 2e-3)):
            layer = Layer("batch_norm", C)
            y = layer.forward(x.astype(dtype), weight=np.full(C, 2.0, "float16"))
            self.assertEqual(y.dtype, dtype)
            np.testing.assert_allclose(y.astype("float64"), 2 * self.batch_norm(x.astype(dtype).astype("float64")), atol=8 * unit)
            self.assertEqual(layer.backward(y)["weight"].dtype, "float16")
        with self.assertRaisesRegex(ValueError, "dtype of input is int32, must be one of float64"):
            Layer("batch_norm", C).forward(x.astype("int32"))

    def test_running_statistics(self):
        layer, x = Layer("batch_norm:momentum=0.5", C), normal(self.rng, (N, C, *SPACE))
        layer.forward(x)
        statistics = layer.statistics()
        np.testing.assert_allclose(statistics["mean"], x.mean((0, 2, 3)), atol=1e-15)
        state = layer.state()
        np.testing.assert_allclose(state["running_mean"], 0.5 * statistics["mean"], atol=1e-15)
        self.assertEqual(state["num_batches_tracked"], 1)
        other = Layer("batch_norm:momentum=0.5", C)
        other.load_state(state)
        layer.train(False)
        other.train(False)
        np.testing.assert_array_equal(layer.forward(x), other.forward(x))
        with self.assertRaises(ValueError):
            Layer("batch_norm", C + 1).load_state(state)

    def test_what_is_wrong_is_said(self):
        with self.assertRaisesRegex(ValueError, "batch_nrom"):
            Layer("batch_nrom", C)
        with self.assertRaisesRegex(ValueError, "eps"):
            Layer("batch_norm:eps=-1", C)
        layer = Layer("batch_norm", C)
        with self.assertRaisesRegex(ValueError, "no forward call"):
            layer.backward(np.ones((N, C)))
        with self.assertRaises(ValueError):
            layer.forward(np.ones((N, C + 1)))
        with self.assertRaises(ValueError):
            layer.forward(np.ones((N, C)), gamma=np.ones(C))
        self.assertIn("running", layer.slots()["running_mean"] + "running")

    def test_dlpack(self):
        class Exporter:  # an array of another library
            def __init__(self, array):
                self.array = array

            def __dlpack__(self, **_):
                return self.array.__dlpack__()

            def __dlpack_device__(self):
                return self.array.__dlpack_device__()

        x = normal(self.rng, (N, C))
        np.testing.assert_array_equal(Layer("batch_norm", C).forward(Exporter(x)), Layer("batch_norm", C).forward(x))


class Ranks(unittest.TestCase):
    def test_four_are_one_with_the_whole_batch(self):
        rng = np.random.default_rng(1)
        x, dy = normal(rng, (7, C, *SPACE)), normal(rng, (7, C, *SPACE))
        cuts = [slice(0, 2), slice(2, 2), slice(2, 6), slice(6, 7)]  # uneven, and an empty rank

        def work(group):
            layer = Layer("sync_batch_norm", C, group=group, name="bn")
            y = layer.forward(x[cuts[group.rank]])
            return y, layer.backward(dy[cuts[group.rank]])["input"]

        parts = run(4, work, timeout=20)
        whole = Layer("batch_norm", C)
        np.testing.assert_allclose(np.concatenate([y for y, _ in parts]), whole.forward(x), atol=1e-14)
        np.testing.assert_allclose(np.concatenate([dx for _, dx in parts]), whole.backward(dy)["input"], atol=1e-14)

    def test_a_difference_is_named(self):
        def work(group):
            return Layer(f"sync_batch_norm:eps={1 + group.rank}e-5", C, group=group, name="bn").forward(np.ones((2, C)))

        with self.assertRaisesRegex(allnorm.Error, "bn.*eps") as caught:
            run(2, work, timeout=20)
        self.assertEqual(caught.exception.code, "mismatch")

    def test_the_rank_that_fails_is_the_one_told(self):
        def work(group):
            if group.rank == 1:
                raise KeyError("mine")
            return Layer("sync_batch_norm", C, group=group, name="bn").forward(np.ones((2, C)))

        with self.assertRaisesRegex(KeyError, "mine"):
            run(2, work, timeout=1)
        with self.assertRaises(ValueError):
            threads(0)


class Readme(unittest.TestCase):
    def test_the_example_runs(self):
        text = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
        example = "import numpy as np\n" + text.split("```python\nimport numpy as np\n", 1)[1].split("```", 1)[0]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example, "README.md", "exec"), {})
        self.assertAlmostEqual(float(printed.getvalue()), 1, delta=1e-4)


if __name__ == "__main__":
    unittest.main()
