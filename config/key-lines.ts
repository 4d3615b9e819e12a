import { isMap, isScalar, isSeq, type LineCounter } from 'yaml'

/** A name that stands twice in one map, with the lines of both. */
interface Repeated {
  readonly path: string
  readonly lines: readonly [number, number]
}

/** Where names stand in a value, by their paths from it, such as `[0].url`; aliases are not followed. */
interface KeyLines {
  readonly lines: Map<string, number>
  readonly repeated: Repeated[]
}

/** The lines of all names in the value of a setting. */
export function readKeyLines(node: unknown, counter: LineCounter): KeyLines {
  const found: KeyLines = { lines: new Map(), repeated: [] }
  visit(node, '', counter, found)
  return found
}

function visit(node: unknown, path: string, counter: LineCounter, found: KeyLines): void {
  if (isSeq(node)) {
    for (const [index, item] of node.items.entries()) visit(item, `${path}[${index}]`, counter, found)
  }
  if (!isMap(node)) return
  for (const { key, value } of node.items) {
    if (!isScalar(key)) continue
    const inner = `${path}.${String(key.value)}`
    const { line } = counter.linePos(key.range?.[0] ?? 0)
    const earlier = found.lines.get(inner)
    if (earlier !== undefined) found.repeated.push({ path: inner, lines: [earlier, line] })
    else found.lines.set(inner, line)
    visit(value, inner, counter, found)
  }
}
