/**
 * Runs a task for each item, some at a time, in their order; ends early when a signal says so. The task must not
 * throw.
 */
export async function inLanes<Item>(
  items: Iterable<Item>,
  lanes: number,
  signal: AbortSignal,
  task: (item: Item) => Promise<void>,
): Promise<void> {
  const rest = items[Symbol.iterator]()
  const lane = async () => {
    for (let next = rest.next(); next.done !== true; next = rest.next()) {
      if (signal.aborted) return
      await task(next.value)
    }
  }
  await Promise.all(Array.from({ length: lanes }, lane))
}
