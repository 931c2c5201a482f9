//! Merged statistics against those of all rows at once.

use super::{PointStatistics, TOP};
use crate::random::Random;

fn numbers(n: usize) -> Vec<f32> {
    let mut random = Random::new(3, "numbers", 0);
    (0..n).map(|_| 1000.0 + (random.below(2001) as f32 - 1000.0) / 100.0).collect()
}

#[test]
fn merged_statistics_are_those_of_all_rows() {
    let (width, rows) = (5, 1000);
    let x = numbers(width * rows);
    let places: Vec<usize> = (0..rows).collect();
    let mut whole = PointStatistics::new("x".into(), width);
    whole.add(&x, &places);
    let mut merged = PointStatistics::new("x".into(), width);
    for part in [0..1, 1..300, 300..300, 300..1000] {
        let mut of_part = PointStatistics::new("x".into(), width);
        of_part.add(&x[width * part.start..width * part.end], &places[part.clone()]);
        merged.merge(&of_part);
    }
    let mut largest: f64 = 0.0;
    for channel in 0..width {
        let column: Vec<f64> = x.iter().skip(channel).step_by(width).map(|&x| f64::from(x)).collect();
        let mean = column.iter().sum::<f64>() / rows as f64;
        let variance = column.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / rows as f64;
        for found in [&whole, &merged] {
            largest = largest.max((found.mean[channel] - mean).abs()).max((found.variance()[channel] - variance).abs());
        }
        let mut sorted = column.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let top: Vec<f64> = merged.top[channel].iter().map(|top| f64::from(top.value)).collect();
        assert_eq!(top, sorted[..TOP]);
    }
    println!("largest difference: {largest:e}");
    assert!(largest < 1e-9, "{largest}");
    assert_eq!((merged.count, &merged.active, &merged.top), (whole.count, &whole.active, &whole.top));
    assert!((merged.norm_mean - whole.norm_mean).abs() < 1e-9);
}

#[test]
fn sparse_rows_have_the_statistics_of_dense_ones() {
    let (width, rows) = (4, 200);
    let mut x = numbers(width * rows);
    x.iter_mut().enumerate().for_each(|(n, x)| {
        if n % 3 != 0 {
            *x = 0.0
        }
    });
    let places: Vec<usize> = (0..rows).collect();
    let (mut dense, mut sparse) = (PointStatistics::new("x".into(), width), PointStatistics::new("x".into(), width));
    dense.add(&x, &places);
    let entries: Vec<Vec<(u32, f32)>> = x
        .chunks(width)
        .map(|row| row.iter().enumerate().filter(|(_, x)| **x != 0.0).map(|(n, x)| (n as u32, *x)).collect())
        .collect();
    sparse.add_sparse(&entries, &places);
    let mut largest: f64 = 0.0;
    for channel in 0..width {
        largest = largest.max((dense.mean[channel] - sparse.mean[channel]).abs());
        largest = largest.max((dense.variance()[channel] / sparse.variance()[channel] - 1.0).abs());
    }
    println!("largest difference: {largest:e}");
    assert!(largest < 1e-9, "{largest}");
    assert_eq!(dense.active, sparse.active);
}
