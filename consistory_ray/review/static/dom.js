// Elements without markup: whatever comes from an output becomes text, never HTML.

export const $ = (id) => document.getElementById(id);

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

export const remember = {
  get(key) { try { return localStorage.getItem(`consistory-review-${key}`); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(`consistory-review-${key}`, value); } catch { /* private windows have no storage */ } },
};

export function toast(text, kind = "") {
  const element = h("p", { class: `toast ${kind}` }, text);
  $("toasts").append(element);
  while ($("toasts").children.length > 3) $("toasts").firstChild.remove();
  setTimeout(() => element.remove(), kind === "bad" ? 8000 : 2600);
}

export const picture = (take) => `/picture/${encodeURIComponent(take.asset_id)}?content=${take.content}`;
export const preview = (take) => `/preview/${encodeURIComponent(take.asset_id)}?content=${take.content}`;
