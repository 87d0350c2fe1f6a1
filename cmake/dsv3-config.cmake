# find_package(dsv3): the targets dsv3::dsv3, and dsv3::native for programs that run where they are
# compiled.
include("${CMAKE_CURRENT_LIST_DIR}/dsv3-dependencies.cmake")
include("${CMAKE_CURRENT_LIST_DIR}/dsv3-targets.cmake")
