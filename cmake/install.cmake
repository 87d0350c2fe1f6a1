# cmake --install: the headers, the license, and a package for find_package(dsv3).
include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/dsv3")
install(DIRECTORY include/dsv3 DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DATADIR}/doc/dsv3")
install(TARGETS dsv3 dsv3_native EXPORT dsv3-targets)
install(EXPORT dsv3-targets NAMESPACE dsv3:: DESTINATION "${package_dir}")
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/dsv3-config-version.cmake"
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES cmake/dsv3-config.cmake cmake/dsv3-dependencies.cmake
              "${CMAKE_CURRENT_BINARY_DIR}/dsv3-config-version.cmake"
        DESTINATION "${package_dir}")
