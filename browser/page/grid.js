// The grid of images with the labels of one store drawn on them, and histograms whose bars filter.

import { pictureUrl, request } from "./api.js";
import { formatNumber, make } from "./make.js";
import { isRejected } from "./rejecting.js";
import { link, navigate, readState, thresholdParams } from "./state.js";

const PAGE_SIZE = 60;
const SIDE = 256;
// Applicability below which an image is marked as of another kind than the teacher's.
const INAPPLICABLE = 0.05;

// Show the images; return the server's answer and a function that adds the histograms.
export async function show(main, about, chosen, other) {
  const state = readState();
  const pair = other ? `${chosen.name}:${other.name}.differ` : null;
  const column = pair ?? (chosen ? `${chosen.name}.${scoreColumn(chosen)}` : null);
  const applicability = chosen?.columns.includes("applicability") ? `${chosen.name}.applicability` : null;
  const answer = await request("/api/images", { f: state.f, order: state.order, t: thresholdParams(state), limit: PAGE_SIZE, offset: state.page * PAGE_SIZE, show: [column, applicability].filter(Boolean) });
  const tiles = answer.images.map((image) => tile(image, chosen, other, column, applicability, state));
  const compared = other ? about.compared.find((pair) => pair.name === `${chosen.name}:${other.name}`) ?? { done: 0, total: about.images } : null;
  const isComparing = compared && compared.done < compared.total;
  const progress = isComparing ? make("p", { class: "note", role: "status" }, `${formatNumber(compared.done)} of ${formatNumber(compared.total)} images compared so far`) : null;
  const emptyText = isComparing ? "The images appear as they are compared." : "No image is like that.";
  const grid = tiles.length ? make("div", { class: other ? "grid wide" : "grid" }, tiles) : make("p", { class: "note" }, emptyText);
  const aside = make("aside", { "aria-label": "Histograms" });
  main.replaceChildren(make("div", { class: "columns" }, make("section", { "aria-label": "Images" }, progress, pages(answer.total, state), grid, pages(answer.total, state)), aside));
  return { answer, addHistograms: () => histograms(aside, chosen, pair, state) };
}

function tile(image, chosen, other, column, applicability, state) {
  const source = `${image.set}/${image.split}: ${image.source}`;
  const shown = [chosen, ...(other ? [other] : [])].map((store) => make("img", { src: pictureUrl(image.key, store?.name, thresholdOf(store, state), SIDE), alt: "", loading: "lazy" }));
  const value = column && image[column] !== null && image[column] !== undefined ? formatNumber(Math.round(100 * image[column]) / 100) : "";
  const rejected = isRejected(image, null) ? " rejected" : isRejected(image, chosen?.name) ? " label rejected" : "";
  const foreign = applicability && image[applicability] !== null && image[applicability] < INAPPLICABLE;
  const unlike = foreign ? make("i", { title: `applicability ${formatNumber(image[applicability])}: unlike the images that ${chosen.maker} knows` }, "unlike") : null;
  return make("a", { class: `tile${rejected ? " rejected" : ""}${foreign ? " unlike" : ""}`, href: link({ image: image.key }), "data-link": true, "data-key": image.key, title: source }, make("span", { class: "pair" }, shown), make("span", {}, rejected ? make("b", {}, rejected.trim()) : null, unlike, ` ${value} ${image.source}`));
}

// The column with the score of a whole label, as thresholds see it.
export function scoreColumn(store) {
  return store.calibration ? "probability" : "confidence";
}

// Names of columns without "probability" where that is the confidence again.
export function withoutRepeated(store, names) {
  return names.filter((name) => name !== "probability" || store.calibration);
}

export function thresholdOf(store, state) {
  return store ? state.t[store.name] ?? store.threshold : 0;
}

function pages(total, state) {
  const last = Math.max(0, Math.ceil(total / PAGE_SIZE) - 1);
  const step = (page, text) => (page < 0 || page > last ? null : make("a", { href: link({ page }), "data-link": true }, text));
  const first = total ? state.page * PAGE_SIZE + 1 : 0;
  return make("div", { class: "pages" }, make("span", {}, `${formatNumber(first)} to ${formatNumber(Math.min(total, (state.page + 1) * PAGE_SIZE))} of ${formatNumber(total)}`), step(state.page - 1, "back"), step(state.page + 1, "on"));
}

async function histograms(aside, chosen, pair, state) {
  const columns = chosen ? [...(chosen.holds ? ["class"] : []), ...withoutRepeated(chosen, chosen.columns).filter((name) => name !== "top")].map((name) => `${chosen.name}.${name}`) : [];
  for (const column of [...(pair ? [pair] : []), ...columns, "set", "split"]) {
    const found = await request("/api/histogram", { column, f: state.f, t: thresholdParams(state) });
    if (found.counts.filter((count) => count > 0).length > 1) aside.append(histogram(column, found, state));
  }
}

function histogram(column, found, state) {
  const name = column.slice(column.lastIndexOf(".") + 1);
  const most = Math.max(1, ...found.counts);
  const filter = (conditions) => () => navigate({ f: [...state.f.filter((condition) => !conditions.includes(condition)), ...conditions], page: 0 });
  if (found.kind === "words") {
    const rows = found.values.map((value, place) =>
      make("li", {}, make("button", { type: "button", onclick: filter([`${column}=${value}`]), title: `only ${value}` }, make("i", { style: { width: `${(100 * found.counts[place]) / most}%` } }), make("span", {}, value), make("span", {}, formatNumber(found.counts[place])))),
    );
    return make("section", { class: "histogram" }, make("h2", {}, name), make("ul", { class: "words" }, rows));
  }
  const bars = found.counts.map((count, place) => {
    const [low, high] = [found.edges[place], found.edges[place + 1]];
    const above = `${column}>=${Number(low.toPrecision(5))}`;
    const below = `${column}${place === found.counts.length - 1 ? "<=" : "<"}${Number(high.toPrecision(5))}`;
    const text = `${name} from ${formatNumber(low)} to ${formatNumber(high)}: ${formatNumber(count)}`;
    return make("button", { type: "button", onclick: filter([above, below]), title: text, "aria-label": text }, make("i", { style: { height: `${(100 * count) / most}%` } }));
  });
  const ends = found.edges.length ? [found.edges[0], found.edges.at(-1)].map((edge) => make("span", {}, formatNumber(edge))) : [make("span", {}, "none")];
  return make("section", { class: "histogram" }, make("h2", {}, name), make("div", { class: "bars" }, bars), make("div", { class: "ends" }, ends));
}
