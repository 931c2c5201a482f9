//! The product of a few rows with a matrix, at the speed at which the matrix can be read.
//!
//! A model that continues a text computes one position at a time, so each product reads a whole matrix for a few multiplications per
//! entry, and memory is the limit. libtorch's products are made for many rows and reach a fraction of that limit (measurements:
//! `docs/performance.md`). This module computes fp32 products of up to [`MOST_ROWS`] rows, in the threads that libtorch computes in. Other
//! kinds, devices and layouts, and products that record gradients, are left to the caller.

use std::ffi::{c_int, c_uint, c_void};
use std::ops::Range;
use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};

/// The most rows that are computed here. With more, libtorch's products are faster.
pub(crate) const MOST_ROWS: usize = 8;
/// The least entries of a matrix. Smaller ones stay in the cache, where libtorch's products serve as well.
const LEAST_ENTRIES: i64 = 1 << 18;
/// The entries of the matrix for which another thread is worth it.
const GRAIN: usize = 1 << 15;

/// Whether [`linear`] computes `x wᵀ + b`.
pub(crate) fn takes(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> bool {
    let (size, weight) = (x.size(), w.size());
    let [n_out, n_in] = weight[..] else { return false };
    let rows = size.iter().rev().skip(1).product::<i64>();
    let plain = |t: &Tensor| {
        t.device() == Device::Cpu && t.f_kind().ok() == Some(Kind::Float) && !t.requires_grad() && t.is_contiguous()
    };
    size.last() == Some(&n_in)
        && (1..=MOST_ROWS as i64).contains(&rows)
        && n_out.saturating_mul(n_in) >= LEAST_ENTRIES
        && b.is_none_or(|b| b.size() == [n_out] && plain(b))
        && plain(x)
        && plain(w)
        && (n_threads(n_out * n_in) == 1 || pool().is_some())
}

/// In how many threads a matrix of so many entries is worth computing with.
fn n_threads(entries: i64) -> usize {
    let most = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    (entries as usize / GRAIN).clamp(1, most.max(1))
}

/// `x wᵀ + b`: `[…, in]` and `[out, in]` to `[…, out]`; `None` where the caller must use another product.
pub(crate) fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Option<Tensor> {
    if !takes(x, w, b) {
        return None;
    }
    let (mut size, weight) = (x.size(), w.size());
    let rows = size.iter().rev().skip(1).product::<i64>();
    let (n_out, n_in) = (weight[0], weight[1]);
    let threads = n_threads(n_out * n_in);
    let pool = if threads > 1 { Some(pool()?) } else { None };
    *size.last_mut()? = n_out;
    let result = Tensor::f_empty(&size, (Kind::Float, Device::Cpu)).ok()?;
    let (n_in, n_out, rows) = (n_in as usize, n_out as usize, rows as usize);
    // SAFETY: the tensors are contiguous, in the CPU's memory, of kind fp32 and of these sizes, as `takes` checked. They live until this
    // function returns. Nothing writes to `x`, `w` and `b` meanwhile: the caller has them by shared reference.
    let (x, w, b) = unsafe {
        let entries = |t: &Tensor, len| std::slice::from_raw_parts(t.data_ptr().cast::<f32>().cast_const(), len);
        (entries(x, rows * n_in), entries(w, n_out * n_in), b.map(|b| entries(b, n_out)))
    };
    let product = Product { x, w, b, n_in, n_out, out: result.data_ptr().cast(), wide: has_wide_vectors() };
    match pool {
        Some(pool) => pool.run(&product, threads),
        None => product.columns(0..n_out),
    }
    Some(result)
}

/// A product that is being computed.
struct Product<'t> {
    x: &'t [f32],
    w: &'t [f32],
    b: Option<&'t [f32]>,
    n_in: usize,
    n_out: usize,
    /// `[row, n_out]`, of which each thread writes its own columns.
    out: *mut f32,
    /// Whether the processor has AVX2 and fused multiplication and addition.
    wide: bool,
}

impl Product<'_> {
    /// Computes some columns of the result. No two threads have the same.
    fn columns(&self, columns: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        if self.wide {
            // SAFETY: the processor has what the function uses.
            return unsafe { self.columns_with_fma(columns) };
        }
        for column in columns {
            let w = &self.w[column * self.n_in..(column + 1) * self.n_in];
            for (row, x) in self.x.chunks_exact(self.n_in).enumerate() {
                self.write(row, column, [dot(x, w)]);
            }
        }
    }

    /// The same with eight multiplications and additions in one instruction.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn columns_with_fma(&self, columns: Range<usize>) {
        for column in columns {
            let w = &self.w[column * self.n_in..(column + 1) * self.n_in];
            // Eight sums side by side at least, so that no addition waits for the one before it.
            match self.x.len() / self.n_in {
                1 => self.write(0, column, dots::<1, 4>(self.x, w)),
                2 => self.write(0, column, dots::<2, 4>(self.x, w)),
                3 => self.write(0, column, dots::<3, 2>(self.x, w)),
                4 => self.write(0, column, dots::<4, 2>(self.x, w)),
                5 => self.write(0, column, dots::<5, 1>(self.x, w)),
                6 => self.write(0, column, dots::<6, 1>(self.x, w)),
                7 => self.write(0, column, dots::<7, 1>(self.x, w)),
                _ => self.write(0, column, dots::<MOST_ROWS, 1>(self.x, w)),
            }
        }
    }

    /// Writes a column of the sums of some rows from `start` on.
    #[inline(always)]
    fn write<const N: usize>(&self, start: usize, column: usize, sums: [f32; N]) {
        let bias = self.b.map_or(0.0, |b| b[column]);
        for (row, sum) in sums.iter().enumerate() {
            // SAFETY: the place is within `[row, n_out]`, and this thread's own.
            unsafe { *self.out.add((start + row) * self.n_out + column) = sum + bias };
        }
    }
}

/// The product of two rows: eight sums side by side, which the compiler may compute at once.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (x_parts, y_parts) = (x.chunks_exact(8), y.chunks_exact(8));
    let rest: f32 = x_parts.remainder().iter().zip(y_parts.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in x_parts.zip(y_parts) {
        for lane in 0..8 {
            sums[lane] += x[lane] * y[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The products of each of the `N` rows of `x` with `w`, each as `U` sums of eight lanes.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
fn dots<const N: usize, const U: usize>(x: &[f32], w: &[f32]) -> [f32; N] {
    use std::arch::x86_64::{_mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps};
    let len = w.len();
    assert!(x.len() == N * len);
    let mut sums = [[_mm256_setzero_ps(); U]; N];
    let whole = len - len % (8 * U);
    for start in (0..whole).step_by(8 * U) {
        for u in 0..U {
            let place = start + 8 * u;
            // SAFETY: eight entries from `place` on lie within `w` and within each row of `x`, whose lengths were checked above.
            unsafe {
                let w = _mm256_loadu_ps(w.as_ptr().add(place));
                for row in 0..N {
                    let x = _mm256_loadu_ps(x.as_ptr().add(row * len + place));
                    sums[row][u] = _mm256_fmadd_ps(x, w, sums[row][u]);
                }
            }
        }
    }
    std::array::from_fn(|row| {
        let mut lanes = [0.0f32; 8];
        let rest: f32 = (whole..len).map(|i| x[row * len + i] * w[i]).sum();
        let sum = sums[row][1..].iter().fold(sums[row][0], |sum, next| _mm256_add_ps(sum, *next));
        // SAFETY: there is room for eight entries.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
        lanes.iter().sum::<f32>() + rest
    })
}

#[cfg(target_arch = "x86_64")]
fn has_wide_vectors() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_wide_vectors() -> bool {
    false
}

/// The functions of the OpenMP library in whose threads libtorch computes. Threads of our own would compete with these, which
/// wait for work without sleeping.
#[derive(Clone, Copy)]
struct Pool {
    parallel: unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint),
    thread: unsafe extern "C" fn() -> c_int,
    threads: unsafe extern "C" fn() -> c_int,
}

/// What a thread of the pool gets.
struct Task<'t> {
    product: &'t Product<'t>,
    pool: Pool,
}

impl Pool {
    /// Computes all columns in so many threads, and waits for them.
    fn run(self, product: &Product<'_>, threads: usize) {
        let mut task = Task { product, pool: self };
        // SAFETY: the function has this signature in every version of GNU's OpenMP library. It calls `part` in each thread of a team
        // with the pointer, and returns when all have returned, so `task` is alive in all of them.
        unsafe { (self.parallel)(part, (&raw mut task).cast(), threads as c_uint, 0) };
    }
}

/// Computes the columns of the calling thread.
unsafe extern "C" fn part(task: *mut c_void) {
    // SAFETY: `Pool::run` passes a `Task` that is alive until all threads have returned, and no thread changes it.
    let task = unsafe { &*task.cast::<Task>() };
    // SAFETY: both functions take nothing, and say which thread of which team calls them.
    let (thread, threads) = unsafe { ((task.pool.thread)() as usize, (task.pool.threads)().max(1) as usize) };
    // Whole cache lines of the result for each thread.
    let each = task.product.n_out.div_ceil(threads).next_multiple_of(16);
    let columns = (thread * each).min(task.product.n_out)..((thread + 1) * each).min(task.product.n_out);
    task.product.columns(columns);
}

/// GNU's OpenMP library, if that is what libtorch uses.
#[cfg(target_os = "linux")]
fn pool() -> Option<Pool> {
    static POOL: OnceLock<Option<Pool>> = OnceLock::new();
    *POOL.get_or_init(|| {
        let program = libloading::os::unix::Library::this();
        // SAFETY: symbols of these names are the OpenMP library's functions, which have these signatures. The program is linked to
        // libtorch, and that to the library, so they stay loaded.
        unsafe {
            Some(Pool {
                parallel: *program.get(b"GOMP_parallel\0").ok()?,
                thread: *program.get(b"omp_get_thread_num\0").ok()?,
                threads: *program.get(b"omp_get_num_threads\0").ok()?,
            })
        }
    })
}

/// The libtorch of other systems uses other libraries.
#[cfg(not(target_os = "linux"))]
fn pool() -> Option<Pool> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    #[test]
    fn agrees_with_libtorch_s_product() {
        for (n_out, n_in) in [(2048, 128), (515, 517), (LEAST_ENTRIES, 1), (1, LEAST_ENTRIES + 3)] {
            let (w, b) = (Tensor::randn([n_out, n_in], CPU), Tensor::randn([n_out], CPU));
            for rows in 1..=MOST_ROWS as i64 {
                if rows > 2 && n_in != 517 {
                    continue;
                }
                let x = Tensor::randn([rows, 1, n_in], CPU);
                for bias in [None, Some(&b)] {
                    let ours = linear(&x, &w, bias).unwrap();
                    let expected =
                        x.to_kind(Kind::Double).linear(&w.to_kind(Kind::Double), bias.map(|b| b.to_kind(Kind::Double)));
                    assert_eq!(ours.size(), [rows, 1, n_out]);
                    let diff = (ours.to_kind(Kind::Double) - expected).abs().max().double_value(&[]);
                    assert!(diff < 1e-6 * n_in as f64, "{rows} rows, [{n_out}, {n_in}]: {diff}");
                }
            }
        }
    }

    #[test]
    fn any_number_of_threads_computes_every_column() {
        let Some(pool) = pool() else { return };
        let (x, w) = (vec![1.0f32; 2 * 5], (0..37 * 5).map(|i| (i / 5) as f32).collect::<Vec<_>>());
        for threads in [1, 2, 3, 7, 64] {
            for wide in [false, has_wide_vectors()] {
                let mut out = vec![f32::NAN; 2 * 37];
                let product = Product { x: &x, w: &w, b: None, n_in: 5, n_out: 37, out: out.as_mut_ptr(), wide };
                pool.run(&product, threads);
                let expected: Vec<f32> = (0..2 * 37).map(|i| (i % 37) as f32 * 5.0).collect();
                assert_eq!(out, expected, "{threads} threads");
            }
        }
    }

    #[test]
    fn other_inputs_are_left_to_libtorch() {
        let (x, w) = (Tensor::randn([5, 700], CPU), Tensor::randn([400, 700], CPU));
        assert!(linear(&x, &w, None).is_some());
        assert!(linear(&Tensor::randn([9, 700], CPU), &w, None).is_none());
        assert!(linear(&Tensor::randn([0, 700], CPU), &w, None).is_none());
        assert!(linear(&Tensor::randn([5, 600], CPU), &w, None).is_none());
        assert!(linear(&Tensor::randn([700, 5], CPU).tr(), &w, None).is_none());
        assert!(linear(&x, &Tensor::randn([700, 400], CPU).tr(), None).is_none());
        assert!(linear(&x, &w, Some(&Tensor::randn([1], CPU))).is_none());
        assert!(linear(&x, &w.narrow(0, 0, 3), None).is_none());
        assert!(linear(&x.to_kind(Kind::Double), &w.to_kind(Kind::Double), None).is_none());
        assert!(linear(&x.set_requires_grad(true), &w, None).is_none());
    }
}
