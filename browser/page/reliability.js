// How well a teacher's scores state the share that is right: a chart, raw and calibrated, with the threshold in it.

import { draw, formatNumber, make } from "./make.js";

const SIDE = 260;
const MARGIN = 34;
const TOP = 14;

// Show a calibrated store's chart; the threshold is a line in it.
export function reliability(store, threshold) {
  const { map, reliability: measured } = store.calibration;
  const place = (share) => MARGIN + share * (SIDE - MARGIN - 8);
  const height = (share) => SIDE - place(share) + TOP;
  const ticks = [0, 0.5, 1].flatMap((share) => [
    draw("text", { x: place(share), y: height(0) + 16, "text-anchor": "middle" }, share),
    draw("text", { x: MARGIN - 6, y: height(share) + 4, "text-anchor": "end" }, share),
  ]);
  const lines = ["raw", "calibrated"].map((name) => curve(name, measured[name].bins, place, height));
  const frame = `M${place(0)} ${height(1)}V${height(0)}H${place(1)}`;
  const svg = draw("svg", { viewBox: `0 0 ${SIDE} ${SIDE + TOP + 4}`, role: "img", "aria-label": `Reliability of ${store.name}` },
    draw("path", { class: "frame", d: frame }), draw("path", { class: "ideal", d: `M${place(0)} ${height(0)}L${place(1)} ${height(1)}` }),
    draw("path", { class: "threshold", d: `M${place(threshold)} ${height(0)}V${height(1)}` }), ...lines, ...ticks,
    draw("text", { x: place(1), y: height(0) + 32, "text-anchor": "end" }, "score or probability"), draw("text", { x: 0, y: 10 }, "share that is right"));
  const key = (name) => make("li", {}, make("i", { class: name }), `${name}: off by ${formatNumber(Number(measured[name].ece.toFixed(3)))}`);
  const method = map.kind === "temperature" ? `Scores have the temperature ${formatNumber(map.temperature)}.` : "Scores are mapped by an isotonic curve.";
  const about = `${method} Measured on ${formatNumber(measured.examples)} predictions in ${formatNumber(measured.images)} images of ${measured.dataset}/${measured.split}, each half calibrated by the other; “off by” is the expected calibration error.`;
  return make("figure", { class: "reliability" }, svg, make("figcaption", {}, make("ul", {}, key("raw"), key("calibrated")), about));
}

// A line through the bins; a dot is as large as its part of all predictions.
function curve(name, bins, place, height) {
  const most = Math.max(...bins.map(([, , size]) => size));
  const points = bins.map(([confidence, right]) => `${place(confidence)} ${height(right)}`);
  const dots = bins.map(([confidence, right, size]) =>
    draw("circle", { cx: place(confidence), cy: height(right), r: 2 + 4 * Math.sqrt(size / most) }, draw("title", {}, `${name} ${formatNumber(confidence)}: ${formatNumber(right)} of ${formatNumber(size)} right`)),
  );
  return draw("g", { class: name }, draw("path", { d: `M${points.join("L")}` }), ...dots);
}
