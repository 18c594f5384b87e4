//! The tray's icon: an arch, and in it how the tunnel does. Pure.
//!
//! Desktops with roamd's icon theme files draw those (config/icons), in their own colours. For all others the icon is drawn
//! here, white with a dark edge, so that it can be seen on light and dark panels.

use super::seen::Way;

/// Side lengths in pixels: panels take the one that fits.
const SIZES: [i32; 3] = [22, 32, 48];
/// The drawing's own side length.
const GRID: f32 = 16.0;
/// Width of a stroke, and of the edge around it.
const STROKE: f32 = 2.0;
const EDGE: f32 = 1.0;
/// How dark the edge is.
const SHADE: f32 = 0.6;

/// An icon as StatusNotifierItem has it: width, height, and pixels of alpha, red, green and blue.
pub(super) type Pixmap = (i32, i32, Vec<u8>);

/// The name in an icon theme.
pub(super) fn name(way: Way) -> &'static str {
    match way {
        Way::Good => "roamd-good-symbolic",
        Way::Poor => "roamd-poor-symbolic",
        Way::Paused => "roamd-paused-symbolic",
        Way::None => "roamd-none-symbolic",
    }
}

/// The icon in all sizes.
pub(super) fn pixmaps(way: Way) -> Vec<Pixmap> {
    SIZES.into_iter().map(|size| (size, size, pixels(way, size))).collect()
}

fn pixels(way: Way, size: i32) -> Vec<u8> {
    let scale = size as f32 / GRID;
    let places = (0..size * size).map(|it| ((it % size) as f32 + 0.5, (it / size) as f32 + 0.5));
    let colors = places.flat_map(|(x, y)| {
        let distance = distance(way, (x / scale, y / scale));
        // The share of the pixel that is within so much of the drawing's lines.
        let covered = |width: f32| ((width - distance) * scale + 0.5).clamp(0.0, 1.0);
        let (white, dark) = (covered(STROKE / 2.0), covered(STROKE / 2.0 + EDGE) * SHADE);
        let alpha = white + dark * (1.0 - white);
        let light = if alpha > 0.0 { white / alpha } else { 0.0 };
        let [alpha, light] = [alpha, light].map(|it| (it * 255.0).round() as u8);
        [alpha, light, light, light]
    });
    colors.collect()
}

type Point = (f32, f32);

/// How far a point is from the middle of the nearest line.
fn distance(way: Way, at: Point) -> f32 {
    let arch =
        arch(at).min(line(at, (2.5, 8.0), (2.5, 14.0))).min(line(at, (13.5, 8.0), (13.5, 14.0)));
    let inside = match way {
        Way::Good => (far(at, (8.0, 10.5)) - 1.5).max(0.0),
        Way::Poor => line(at, (8.0, 7.0), (8.0, 10.2)).min(far(at, (8.0, 13.4))),
        Way::Paused => {
            line(at, (6.2, 8.5), (6.2, 13.0)).min(line(at, (9.8, 8.5), (9.8, 13.0))) + 0.2
        }
        Way::None => {
            line(at, (5.8, 8.3), (10.2, 12.7)).min(line(at, (10.2, 8.3), (5.8, 12.7))) + 0.2
        }
    };
    arch.min(inside)
}

/// The upper half of a circle.
fn arch((x, y): Point) -> f32 {
    if y < 8.0 { (far((x, y), (8.0, 8.0)) - 5.5).abs() } else { f32::INFINITY }
}

fn far(a: Point, b: Point) -> f32 {
    (a.0 - b.0).hypot(a.1 - b.1)
}

fn line(at: Point, from: Point, to: Point) -> f32 {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let along = ((at.0 - from.0) * dx + (at.1 - from.1) * dy) / (dx * dx + dy * dy);
    let along = along.clamp(0.0, 1.0);
    far(at, (from.0 + along * dx, from.1 + along * dy))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Way; 4] = [Way::Good, Way::Poor, Way::Paused, Way::None];

    #[test]
    fn each_way_has_a_drawing_of_its_own_in_every_size() {
        for (place, way) in ALL.into_iter().enumerate() {
            for (number, (width, height, pixels)) in pixmaps(way).into_iter().enumerate() {
                assert_eq!((width, height), (SIZES[number], SIZES[number]));
                assert_eq!(pixels.len() as i32, 4 * width * height);
                let opaque = pixels.chunks(4).filter(|pixel| pixel[0] > 200).count();
                let share = opaque as f32 / (width * height) as f32;
                assert!((0.15..0.5).contains(&share), "{way:?}, {width}: {share}");
                assert!(ALL[..place].iter().all(|other| pixmaps(*other)[number].2 != pixels));
            }
        }
    }

    #[test]
    fn each_way_has_a_file_for_icon_themes() {
        for way in ALL {
            let file = format!("{}/config/icons/{}.svg", env!("CARGO_MANIFEST_DIR"), name(way));
            let svg = std::fs::read_to_string(&file).expect(&file);
            assert!(svg.starts_with("<svg ") && !svg.contains("stroke"), "{file}");
        }
    }
}
