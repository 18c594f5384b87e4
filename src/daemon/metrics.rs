//! Figures for Prometheus (text format, `metrics.listen`), made of the status at each request.

mod families;
mod serve;

pub(crate) use families::text;
pub(crate) use serve::serve;
