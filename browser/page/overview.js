// The header: what this root is. Sets, teachers with their metrics, the student and the last run; it can be folded.

import { request } from "./api.js";
import { formatNumber, make, table } from "./make.js";
import { link } from "./state.js";

const FOLDED = "must overview";
const WIDE = "(min-width: 60rem)";
const place = document.getElementById("overview");
let shown = "";

place.addEventListener("toggle", () => localStorage.setItem(FOLDED, place.open ? "open" : "folded"));

export async function show(about) {
  const wanted = JSON.stringify([about.loaded, about.images, about.sets, about.run]);
  if (wanted === shown) return;
  shown = wanted;
  const { teachers, student, unlike } = await request("/api/overview");
  const isFirst = !place.childElementCount;
  place.replaceChildren(summary(about, teachers, student), make("div", { class: "overview" }, sets(about), teacherTable(about, teachers, unlike), last(about, student)));
  if (isFirst) place.open = (localStorage.getItem(FOLDED) ?? (matchMedia(WIDE).matches ? "open" : "folded")) === "open";
}

function plural(count, word) {
  return `${formatNumber(count)} ${word}${count === 1 ? "" : "s"}`;
}

function summary(about, teachers, student) {
  const names = new Set(about.sets.map(({ name }) => name));
  const parts = [`${plural(about.images, "image")} in ${plural(names.size, "set")}`, plural(teachers.length, "teacher"), student ? "a student" : null, about.run ? `run ${about.run.recipe} ${about.run.state}` : null];
  return make("summary", {}, parts.filter(Boolean).join(" · "));
}

// A set is a row, its splits are columns.
function sets(about) {
  const splits = [...new Set(about.sets.map(({ split }) => split))].sort((one, other) => ["train", "val", "test"].indexOf(one) - ["train", "val", "test"].indexOf(other));
  const names = [...new Set(about.sets.map(({ name }) => name))];
  const count = (name, split) => about.sets.find((set) => set.name === name && set.split === split)?.images ?? "";
  const setLink = (name) => make("a", { href: link({ view: "images", f: [`set=${name}`], page: 0 }), "data-link": true }, name);
  return make("section", {}, table(["set", ...splits], names.map((name) => [setLink(name), ...splits.map((split) => count(name, split))])));
}

function teacherTable(about, teachers, unlike) {
  const time = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "");
  const rows = teachers.map((teacher) => {
    const rows = unlike.filter((row) => row.teacher === teacher.name);
    const [known, low] = ["known", "unlike"].map((name) => rows.reduce((sum, row) => sum + row[name], 0));
    const name = teacher.store ? make("a", { href: link({ view: "images", store: teacher.name, other: null, page: 0 }), "data-link": true }, teacher.name) : teacher.name;
    const held = teacher.held_out ? `${plural(teacher.held_out, "image")} (${teacher.split})` : "";
    return [name, teacher.task, teacher.metric ?? "", score(teacher.score), score(teacher.baseline), held, known ? `${Math.round((100 * low) / known)} %` : "", make("code", { title: time(teacher.made) }, teacher.version)];
  });
  const columns = ["teacher", "task", "metric", "score", "baseline", "held out", "unlike", "version"];
  return make("section", {}, table(columns, rows));
}

function score(value) {
  return typeof value === "number" ? make("span", { class: "score" }, value.toFixed(3)) : "";
}

function last(about, student) {
  const { run } = about;
  const time = (seconds) => new Date(seconds * 1000).toLocaleString();
  const state = run && { finished: "finished", failed: `failed${run.step ? ` in ${run.step}` : ""}: ${run.error}`, unfinished: `under way, or killed${run.step ? `: last in ${run.step}` : ""}` }[run.state];
  const rows = [
    run ? ["last run", make("span", { title: run.name }, run.recipe), run.began ? `, ${time(run.began)}, ` : ", ", make("span", { class: run.state === "failed" ? "bad" : null }, state)] : null,
    student ? ["student", [student.backbone, student.images ? plural(student.images, "image") : null, ""].filter((part) => part !== null).join(", "), make("code", { title: time(student.made) }, student.version)] : null,
  ].filter(Boolean);
  return make("dl", {}, rows.flatMap(([name, ...about]) => [make("dt", {}, name), make("dd", {}, about)]));
}
