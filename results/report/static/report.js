"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;

// the theme: that of the system until the button says otherwise
const theme = document.getElementById("theme");
const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const named = () => { theme.textContent = dark() ? "Light theme" : "Dark theme"; };
theme.hidden = false;
theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; named(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", named);
named();

const percent = (tenths) => tenths === null ? "–" : (tenths / 10).toFixed(1);

const told = (matrix, r, k) => {
const cell = matrix.cells[r][k], row = matrix.rows[r], name = `${row.attack} on ${row.set} → ${matrix.targets[k][1]}`;
if (!cell) return `${name}: not evaluated.`;
const [rate, low, high, n, clean, robust, error, white, counted] = cell;
const where = white ? "white-box, not in the mean" : counted ? "held out, in the mean" : "held out, not in the mean";
return `${name}: ${percent(rate)} % [${percent(low)}–${percent(high)}] of ${n} images (95 % Wilson interval); ` +
`accuracy ${percent(clean)} % clean, ${percent(robust)} % after; error rate ${percent(error)} %; ${where}.`;
};

document.querySelectorAll("table.matrix").forEach((table) => {
const number = Number(table.id.slice(6)), matrix = data[number];
const body = table.tBodies[0], status = document.getElementById(`status-${number}`);
const form = document.querySelector(`form[data-matrix="${number}"]`);
const rows = [...body.rows], heads = [...table.querySelectorAll("th[data-sort]")];
const families = [...table.querySelectorAll("th[data-family]")];
const family = families.flatMap((th) => Array(th.colSpan).fill(th.dataset.family));
let hidden = new Set(), current = null;

// what the keys reach, line by line: buttons of the header, then the button and the cells of each row
const reach = (th) => th.querySelector("button");
const lines = () => [
heads.filter((th) => !th.hidden).map(reach),
...[...body.rows].filter((tr) => !tr.hidden && tr.dataset.row).map((tr) =>
[reach(tr.cells[0]), ...[...tr.cells].slice(1).filter((td) => !td.hidden)]),
];
const at = (element) => {
const found = lines();
for (let y = 0; y < found.length; y++) { const x = found[y].indexOf(element); if (x >= 0) return [found, y, x]; }
return [found, 0, 0];
};
const settle = (element) => { if (current) current.tabIndex = -1; current = element; current.tabIndex = 0; };
table.querySelectorAll("button").forEach((button) => { button.tabIndex = -1; });
settle(table.querySelector(".open") || reach(heads[0]));

const say = (element) => {
const td = element.closest("td"), tr = element.closest("tr");
if (!td || !tr.dataset.row || td.cellIndex < 2) return;
status.textContent = told(matrix, Number(tr.dataset.row), td.cellIndex - 2);
};
table.addEventListener("focusin", (event) => {
const element = event.target.closest("td,button");
if (element) { settle(element); say(element); }
});
table.addEventListener("pointerover", (event) => { if (event.target.closest) say(event.target); });
table.addEventListener("click", (event) => { const td = event.target.closest("td"); if (td && td.parentElement.dataset.row) { settle(td); td.focus(); } });
table.addEventListener("keydown", (event) => {
const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const [found, y, x] = at(event.target);
let to = null;
if (moves[event.key]) {
const line = Math.min(Math.max(y + moves[event.key][0], 0), found.length - 1);
to = [line, Math.min(Math.max(x + moves[event.key][1], 0), found[line].length - 1)];
} else if (event.key === "Home") to = [event.ctrlKey ? 0 : y, 0];
else if (event.key === "End") { const line = event.ctrlKey ? found.length - 1 : y; to = [line, found[line].length - 1]; }
if (!to) return;
event.preventDefault();
settle(found[to[0]][to[1]]);
current.focus();
});

// sorting: by the mean, by one target, or by name
const value = (r, by) => {
if (by === "attack") return `${matrix.rows[r].attack} ${matrix.rows[r].set}`;
if (by === "mean") return matrix.rows[r].mean;
const cell = matrix.cells[r][Number(by)];
return cell ? cell[0] : null;
};
heads.forEach((th) => reach(th).addEventListener("click", () => {
const by = th.dataset.sort, before = th.getAttribute("aria-sort");
const ascending = before ? before === "descending" : by === "attack";
heads.forEach((each) => each.removeAttribute("aria-sort"));
th.setAttribute("aria-sort", ascending ? "ascending" : "descending");
close();
const order = rows.map((tr) => [value(Number(tr.dataset.row), by), Number(tr.dataset.row), tr]);
order.sort(([a, i], [b, j]) => {
if (a === null || b === null) return (a === null) - (b === null) || i - j;
const less = a < b ? -1 : a > b ? 1 : 0;
return (ascending ? less : -less) || i - j;
});
body.append(...order.map(([, , tr]) => tr));
status.textContent = `Sorted by ${by === "attack" ? "name" : by === "mean" ? "the mean" : matrix.targets[Number(by)][0]}, ${ascending ? "ascending" : "descending"}.`;
}));

// a row opens the specification of its attack
const close = () => body.querySelectorAll("tr.spec-row").forEach((tr) => {
tr.previousElementSibling.querySelector("button").setAttribute("aria-expanded", "false");
tr.remove();
});
rows.forEach((tr) => {
const button = reach(tr.cells[0]), spec = document.getElementById(button.dataset.spec);
if (!spec) return;
button.setAttribute("aria-expanded", "false");
button.addEventListener("click", () => {
const open = button.getAttribute("aria-expanded") === "true";
close();
if (open) return;
const line = document.createElement("tr"), cell = document.createElement("td"), copy = spec.cloneNode(true);
line.className = "spec-row";
copy.removeAttribute("id");
cell.colSpan = 2 + matrix.targets.length - hidden.size;
cell.append(copy);
line.append(cell);
tr.after(line);
button.setAttribute("aria-expanded", "true");
});
});

// filters: families of targets hide columns, sets and names hide rows
const filter = () => {
const shown = new Set([...form.querySelectorAll("input[name=family]:checked")].map((box) => box.value));
const chosen = (name) => form.elements[name] ? form.elements[name].value : "";
const set = chosen("set"), kind = chosen("kind"), part = form.elements.attack.value.trim().toLowerCase();
close();
hidden = new Set(family.flatMap((name, k) => shown.has(name) ? [] : [k]));
families.forEach((th) => { th.hidden = !shown.has(th.dataset.family); });
heads.slice(2).forEach((th, k) => { th.hidden = hidden.has(k); });
let count = 0;
rows.forEach((tr) => {
const row = matrix.rows[Number(tr.dataset.row)];
tr.hidden = Boolean(set && row.set !== set) || Boolean(kind && row.family !== kind) || !row.attack.toLowerCase().includes(part);
count += !tr.hidden;
[...tr.cells].slice(2).forEach((td, k) => { td.hidden = hidden.has(k); });
});
status.textContent = `${count} of ${rows.length} rows and ${family.length - hidden.size} of ${family.length} targets are shown; means stay those over all held-out targets.`;
const first = lines().flat()[0];
if (current.closest("[hidden]")) settle(first);
};
if (form) {
form.hidden = false;
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
}
});
})();
