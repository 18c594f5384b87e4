//! Figures for Prometheus (text format, `metrics.listen`), made of the status at each request.

mod families;
mod serve;

pub use families::text;
pub use serve::{MetricsServer, serve};
