// The grid of images with the labels of one store or of all teachers drawn on them, and histograms whose bars filter.

import { pictureUrl, request, togetherUrl } from "./api.js";
import { storesOf, thresholdOf, toggles } from "./layers.js";
import { formatNumber, make } from "./make.js";
import { isRejected } from "./rejecting.js";
import { link, navigate, readState, thresholdParams } from "./state.js";

const PAGE_SIZE = 60;
const SIDE = 256;
// Applicability below which an image is marked as of another kind than the teacher's.
export const INAPPLICABLE = 0.05;

// Show the images with the labels of one store; return the server's answer and a function that adds the histograms.
export async function show(main, about, chosen, other) {
  const state = readState();
  const pair = other ? `${chosen.name}:${other.name}.differ` : null;
  const column = pair ?? (chosen ? `${chosen.name}.${scoreColumn(chosen)}` : null);
  const applicabilities = applicabilityColumns(chosen ? [chosen] : []);
  const answer = await requestImages(state, [column, ...applicabilities.values()]);
  const pictures = (image) => [chosen, ...(other ? [other] : [])].map((store) => pictureUrl(image.key, store?.name, thresholdOf(store, state), SIDE));
  const tiles = answer.images.map((image) => tile(image, pictures(image), { chosen, column, applicabilities }));
  const compared = other ? about.compared.find((pair) => pair.name === `${chosen.name}:${other.name}`) ?? { done: 0, total: about.images } : null;
  const isComparing = compared && compared.done < compared.total;
  const progress = isComparing ? make("p", { class: "note", role: "status" }, `${formatNumber(compared.done)} of ${formatNumber(compared.total)} images compared so far`) : null;
  const aside = replaceGrid(main, answer, state, { tiles, progress, kind: other ? "wide" : "", emptyText: isComparing ? "The images appear as they are compared." : "No image is like that." });
  return { answer, addHistograms: () => histograms(aside, chosen, pair, state) };
}

// Show the images with the labels of all stores that are switched on; return what `show` does.
export async function showTogether(main, about) {
  const state = readState();
  const stores = storesOf(about);
  const applicabilities = applicabilityColumns(stores);
  const answer = await requestImages(state, applicabilities.values());
  const picture = (image) => togetherUrl(image.key, storesOf(about, image).map((store) => [store.name, thresholdOf(store, state)]), SIDE);
  const tiles = answer.images.map((image) => tile(image, [picture(image)], { chosen: null, column: null, applicabilities }));
  const aside = replaceGrid(main, answer, state, { tiles, kind: stores.some(({ layer, true: isTrue }) => layer === "map" && !isTrue) ? "tall" : "", emptyText: "No image is like that." });
  const { list, classLists } = toggles(about, state);
  aside.append(make("h2", {}, "Labels"), list);
  const addHistograms = async () => {
    for (const [store, place] of classLists) if (store.holds) await addHistogram(place, `${store.name}.class`, state, store);
    for (const column of ["set", "split"]) await addHistogram(aside, column, state);
  };
  return { answer, addHistograms };
}

function requestImages(state, columns) {
  return request("/api/images", { f: state.f, order: state.order, t: thresholdParams(state), limit: PAGE_SIZE, offset: state.page * PAGE_SIZE, show: [...columns].filter(Boolean) });
}

// By store, the column with the applicability of its labels.
function applicabilityColumns(stores) {
  return new Map(stores.filter((store) => store.columns.includes("applicability")).map((store) => [store, `${store.name}.applicability`]));
}

// Show the tiles; return the column beside them.
function replaceGrid(main, answer, state, { tiles, progress, kind, emptyText }) {
  const grid = tiles.length ? make("div", { class: `grid ${kind}` }, tiles) : make("p", { class: "note" }, emptyText);
  const aside = make("aside", { "aria-label": "Labels and histograms" });
  main.replaceChildren(make("div", { class: "columns" }, make("section", { "aria-label": "Images" }, progress, pages(answer.total, state), grid, pages(answer.total, state)), aside));
  return aside;
}

function tile(image, pictures, { chosen, column, applicabilities }) {
  const shown = pictures.map((src) => make("img", { src, alt: "", loading: "lazy" }));
  const value = column && image[column] !== null && image[column] !== undefined ? formatNumber(Math.round(100 * image[column]) / 100) : "";
  const rejected = isRejected(image, null) ? " rejected" : isRejected(image, chosen?.name) ? " label rejected" : "";
  const foreign = [...applicabilities].filter(([, name]) => image[name] !== null && image[name] !== undefined && image[name] < INAPPLICABLE);
  const why = foreign.map(([store, name]) => `applicability ${formatNumber(image[name])}: unlike the images that ${store.maker} knows`).join("\n");
  const teachers = chosen ? "" : foreign.length > 1 ? `: ${foreign.length} teachers` : `: ${foreign[0]?.[0].maker}`;
  const unlike = foreign.length ? make("i", { title: why }, `unlike${teachers}`) : null;
  const isFramed = foreign.length * 2 > applicabilities.size;
  return make("a", { class: `tile${rejected ? " rejected" : ""}${isFramed ? " unlike" : ""}`, href: link({ image: image.key }), "data-link": true, "data-key": image.key, title: `${image.set}/${image.split}: ${image.source}` }, make("span", { class: "pair" }, shown), make("span", {}, rejected ? make("b", {}, rejected.trim()) : null, unlike, ` ${value} ${image.source}`));
}

// The column with the score of a whole label, as thresholds see it.
export function scoreColumn(store) {
  return store.calibration ? "probability" : "confidence";
}

// Names of columns without "probability" where that is the confidence again.
export function withoutRepeated(store, names) {
  return names.filter((name) => name !== "probability" || store.calibration);
}

function pages(total, state) {
  const last = Math.max(0, Math.ceil(total / PAGE_SIZE) - 1);
  const step = (page, text) => (page < 0 || page > last ? null : make("a", { href: link({ page }), "data-link": true }, text));
  const first = total ? state.page * PAGE_SIZE + 1 : 0;
  return make("div", { class: "pages" }, make("span", {}, `${formatNumber(first)} to ${formatNumber(Math.min(total, (state.page + 1) * PAGE_SIZE))} of ${formatNumber(total)}`), step(state.page - 1, "back"), step(state.page + 1, "on"));
}

async function histograms(aside, chosen, pair, state) {
  const columns = chosen ? [...(chosen.holds ? ["class"] : []), ...withoutRepeated(chosen, chosen.columns).filter((name) => name !== "top")].map((name) => `${chosen.name}.${name}`) : [];
  for (const column of [...(pair ? [pair] : []), ...columns, "set", "split"]) await addHistogram(aside, column, state, chosen);
}

// Add the histogram of a column, unless it has one bar; of classes with their colors, which always says something.
async function addHistogram(place, column, state, store = null) {
  const found = await request("/api/histogram", { column, f: state.f, t: thresholdParams(state) });
  const colours = column === `${store?.name}.class` && ["tint", "outlines"].includes(store.layer) ? new Map(store.classes.map((name, number) => [name, store.colours[number]]).filter(([name]) => !store.clear.includes(name))) : null;
  const fewest = colours ? 0 : 1;
  if (found.counts.filter((count) => count > 0).length > fewest) place.append(histogram(column, found, state, colours));
}

function swatch(colours, name) {
  return make("b", { class: "swatch", style: colours.has(name) ? { background: `rgb(${colours.get(name)})` } : {} });
}

function histogram(column, found, state, colours) {
  const name = column.slice(column.lastIndexOf(".") + 1);
  const most = Math.max(1, ...found.counts);
  const filter = (conditions) => () => navigate({ f: [...state.f.filter((condition) => !conditions.includes(condition)), ...conditions], page: 0 });
  if (found.kind === "words") {
    const rows = found.values.map((value, place) =>
      make("li", {}, make("button", { type: "button", onclick: filter([`${column}=${value}`]), title: `only ${value}` }, make("i", { style: { width: `${(100 * found.counts[place]) / most}%` } }), make("span", {}, colours ? swatch(colours, value) : null, value), make("span", {}, formatNumber(found.counts[place])))),
    );
    return make("section", { class: "histogram" }, make("h2", {}, name), make("ul", { class: "words" }, rows));
  }
  const bars = found.counts.map((count, place) => {
    const [low, high] = [found.edges[place], found.edges[place + 1]];
    const above = `${column}>=${Number(low.toPrecision(5))}`;
    const below = `${column}${place === found.counts.length - 1 ? "<=" : "<"}${Number(high.toPrecision(5))}`;
    const range = !found.whole ? `from ${formatNumber(low)} to ${formatNumber(high)}` : high - low > 1 ? `${formatNumber(low)} to ${formatNumber(high - 1)}` : formatNumber(low);
    const text = `${name} ${range}: ${formatNumber(count)}`;
    return make("button", { type: "button", onclick: filter([above, below]), title: text, "aria-label": text }, make("i", { style: { height: `${(100 * count) / most}%` } }));
  });
  const ends = found.edges.length ? [found.edges[0], found.edges.at(-1) - (found.whole ? 1 : 0)].map((edge) => make("span", {}, formatNumber(edge))) : [make("span", {}, "none")];
  return make("section", { class: "histogram" }, make("h2", {}, name), make("div", { class: "bars" }, bars), make("div", { class: "ends" }, ends));
}
