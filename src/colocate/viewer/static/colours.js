// matplotlib's viridis, as the server draws it.

const STOPS = ["68 1 84", "71 44 122", "59 81 139", "44 113 142", "33 144 141", "39 173 129", "92 200 99", "170 220 50", "253 231 37"]
  .map((stop) => stop.split(" ").map(Number));

// `share` in [0, 1] from dark to light.
export function colourOf(share) {
  const place = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1);
  const from = Math.min(Math.floor(place), STOPS.length - 2);
  const mixed = STOPS[from].map((value, channel) => Math.round(value + (place - from) * (STOPS[from + 1][channel] - value)));
  return `rgb(${mixed.join(" ")})`;
}
