// Questions to the server. What goes wrong is an Error with the server's own words.

export async function ask(path, parameters = {}, options = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (Array.isArray(value)) value.forEach((each) => query.append(name, each));
    else if (value !== null && value !== undefined) query.set(name, value);
  }
  const response = await fetch(query.size ? `${path}?${query}` : path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || answer.detail?.[0]?.msg || response.statusText);
  return answer;
}

export function send(path, content, method = "POST") {
  return ask(path, {}, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });
}

export function picture(key, store, threshold, side) {
  const query = new URLSearchParams({ side });
  if (store) {
    query.set("store", store);
    query.set("threshold", threshold);
  }
  return `/api/picture/${key}?${query}`;
}
