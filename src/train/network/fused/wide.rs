//! Which instructions the processor has, and functions that are compiled for them.

/// True if products of bf16 can use AVX-512.
#[cfg(target_arch = "x86_64")]
pub fn has_bf16() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// True if [`vectorised`] functions can use AVX-512.
#[cfg(target_arch = "x86_64")]
pub fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// True if [`vectorised`] functions can use AVX2.
#[cfg(target_arch = "x86_64")]
pub fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
}

/// Compiles a function for every processor, for AVX2 and for AVX-512, and picks at run time. The source is
/// the same and nothing is re-associated or contracted, so all give the same bits.
macro_rules! vectorised {
    ($(#[$meta:meta])* pub fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        pub fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            fn plain($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn wide($($arg: $type),*) $(-> $result)? {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn half_as_wide($($arg: $type),*) $(-> $result)? {
                    plain($($arg),*)
                }
                if $crate::train::network::fused::wide::has_avx512() {
                    // SAFETY: the processor has these instructions.
                    return unsafe { wide($($arg),*) };
                }
                if $crate::train::network::fused::wide::has_avx2() {
                    // SAFETY: the processor has these instructions.
                    return unsafe { half_as_wide($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    };
}
pub(super) use vectorised;
