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
                self.put(row, column, 0, [[dot(x, w)]]);
            }
        }
    }

    /// The same with eight multiplications and additions in one instruction.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn columns_with_fma(&self, columns: Range<usize>) {
        let (n_in, all) = (self.n_in, 0..self.n_in);
        match self.x.len() / n_in {
            // One row waits for memory alone, which is read fastest in one stream.
            1 => columns
                .for_each(|column| self.put(0, column, 0, dots::<1, 1, 4>(self.x, self.w_from(column), n_in, &all))),
            2 => columns
                .for_each(|column| self.put(0, column, 0, dots::<2, 1, 4>(self.x, self.w_from(column), n_in, &all))),
            _ => self.blocks(columns),
        }
    }

    /// Computes columns in blocks that fit in the second cache, while the next block is read into it: so memory is read in one stream,
    /// and what is loaded into registers serves several products, of three columns with four rows.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn blocks(&self, columns: Range<usize>) {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T1};
        /// Columns of a block.
        const BLOCK: usize = 24;
        /// Entries of a row of `x` that are used at a time: four rows of them stay in the first cache.
        const SEGMENT: usize = 1024;
        /// The entries of a cache line.
        const LINE: usize = 16;
        let n_in = self.n_in;
        let segments = n_in.div_ceil(SEGMENT);
        let groups = (self.x.len() / n_in).div_ceil(4);
        let steps = segments * groups * BLOCK / 3;
        for start in columns.clone().step_by(BLOCK) {
            let end = (start + BLOCK).min(columns.end);
            let mut ahead = (end * n_in..(end + BLOCK).min(columns.end) * n_in).step_by(LINE);
            let lines = (BLOCK * n_in / LINE).div_ceil(steps);
            for from in (0..n_in).step_by(SEGMENT) {
                let part = from..(from + SEGMENT).min(n_in);
                for (group, x) in self.x.chunks(4 * n_in).enumerate() {
                    for column in (start..end).step_by(3) {
                        for entry in ahead.by_ref().take(lines) {
                            _mm_prefetch::<_MM_HINT_T1>(self.w.as_ptr().wrapping_add(entry).cast());
                        }
                        if column + 3 <= end {
                            self.tile::<3>(4 * group, column, x, &part);
                        } else {
                            (column..end).for_each(|column| self.tile::<1>(4 * group, column, x, &part));
                        }
                    }
                }
            }
        }
    }

    /// Adds part of the products of up to four rows with `R` columns.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn tile<const R: usize>(&self, row: usize, column: usize, x: &[f32], part: &Range<usize>) {
        let (w, n_in) = (self.w_from(column), self.n_in);
        match x.len() / n_in {
            1 => self.put(row, column, part.start, dots::<1, R, 1>(x, w, n_in, part)),
            2 => self.put(row, column, part.start, dots::<2, R, 1>(x, w, n_in, part)),
            3 => self.put(row, column, part.start, dots::<3, R, 1>(x, w, n_in, part)),
            _ => self.put(row, column, part.start, dots::<4, R, 1>(x, w, n_in, part)),
        }
    }

    /// The rows of the matrix from that of a column on.
    fn w_from(&self, column: usize) -> &[f32] {
        &self.w[column * self.n_in..]
    }

    /// Writes the sums of `R` columns from `column` on, of `N` rows from `row` on; behind the first part of the products, adds them.
    #[inline(always)]
    fn put<const N: usize, const R: usize>(&self, row: usize, column: usize, from: usize, sums: [[f32; N]; R]) {
        for (column, sums) in (column..).zip(sums) {
            let bias = self.b.map_or(0.0, |b| b[column]);
            for (row, sum) in (row..).zip(sums) {
                // SAFETY: the place is within `[row, n_out]`, and this thread's own. It was written before it is read: parts come in order.
                unsafe {
                    let place = self.out.add(row * self.n_out + column);
                    *place = sum + if from == 0 { bias } else { *place };
                }
            }
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

/// The products of the `N` rows of `x` with the first `R` rows of `w`, all of `len` entries, of which a part counts. Each is `U` sums of
/// eight lanes, so that no addition waits for the one before it.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
#[allow(clippy::needless_range_loop)] // an index is one of several arrays
fn dots<const N: usize, const R: usize, const U: usize>(
    x: &[f32],
    w: &[f32],
    len: usize,
    part: &Range<usize>,
) -> [[f32; N]; R] {
    use std::arch::x86_64::{
        __m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };
    assert!(x.len() == N * len && w.len() >= R * len && part.start <= part.end && part.end <= len);
    let mut sums = [[[_mm256_setzero_ps(); U]; N]; R];
    let whole = part.end - (part.end - part.start) % (8 * U);
    for start in (part.start..whole).step_by(8 * U) {
        for u in 0..U {
            let place = start + 8 * u;
            // SAFETY: eight entries from `place` on lie within each row of `w` and `x`, whose lengths were checked above.
            unsafe {
                let w: [__m256; R] = std::array::from_fn(|row| _mm256_loadu_ps(w.as_ptr().add(row * len + place)));
                for n in 0..N {
                    let x = _mm256_loadu_ps(x.as_ptr().add(n * len + place));
                    for r in 0..R {
                        sums[r][n][u] = _mm256_fmadd_ps(x, w[r], sums[r][n][u]);
                    }
                }
            }
        }
    }
    std::array::from_fn(|r| {
        std::array::from_fn(|n| {
            let mut lanes = [0.0f32; 8];
            let rest: f32 = (whole..part.end).map(|i| x[n * len + i] * w[r * len + i]).sum();
            let sum = sums[r][n][1..].iter().fold(sums[r][n][0], |sum, next| _mm256_add_ps(sum, *next));
            // SAFETY: there is room for eight entries.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
            lanes.iter().sum::<f32>() + rest
        })
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
        for (n_out, n_in) in [(2048, 128), (515, 517), (130, 2055), (LEAST_ENTRIES, 1), (1, LEAST_ENTRIES + 3)] {
            let (w, b) = (Tensor::randn([n_out, n_in], CPU), Tensor::randn([n_out], CPU));
            for rows in 1..=MOST_ROWS as i64 {
                if rows > 3 && n_in != 517 && n_in != 2055 {
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
